"""ONNX graph passes that find attention sublayers and take them out. Imports onnx_ir and the standard library only."""

from graph_passes.blocks import Block, DownProjection, find_blocks, find_read
from graph_passes.bypass_attention import BypassAttention
from graph_passes.cache_names import KVNames
from graph_passes.cut import CutRefused, cut
from graph_passes.dataflow import Dataflow
from graph_passes.describe_site import Heads, block_form, heads_of
from graph_passes.drop_cache_io import DropCacheIO
from graph_passes.element_types import set_element_types
from graph_passes.expose_residuals import ExposeResiduals, residual_names
from graph_passes.find_attention import CROSS_LAYERS_KEY, LAYERS_KEY, N_CROSS_KEY, N_LAYERS_KEY, find_attention
from graph_passes.gate_attention import GATE_NAMES, GateAttention
from graph_passes.inline_functions import InlineAttentionFunctions
from graph_passes.lowering import LOWERINGS, Lowered, LoweringRefused, LowerOperators, lower_operators
from graph_passes.move_past_length import LengthMove, MovePastLength
from graph_passes.operators import operator_name
from graph_passes.precision import Conversion, ConvertPrecision, EmulateType
from graph_passes.removal import Removal, plan_removal
from graph_passes.remove_attention import RemoveAttention, apply_removal, remove_attention
from graph_passes.sites import (
    AttentionCore,
    AttentionSite,
    AttentionSites,
    CacheTensors,
    Kind,
    LengthLost,
    NoMatch,
    ResidualMerge,
    SurgeryRefused,
)
from graph_passes.stand_in import InsertStandIns, StandIn
from graph_passes.sweep import Sweep, weights_of
from graph_passes.unfuse_norms import UnfuseSkipNorms

__all__ = [
    "CROSS_LAYERS_KEY",
    "GATE_NAMES",
    "LAYERS_KEY",
    "LOWERINGS",
    "N_CROSS_KEY",
    "N_LAYERS_KEY",
    "AttentionCore",
    "AttentionSite",
    "AttentionSites",
    "Block",
    "BypassAttention",
    "CacheTensors",
    "Conversion",
    "ConvertPrecision",
    "CutRefused",
    "Dataflow",
    "DownProjection",
    "DropCacheIO",
    "EmulateType",
    "ExposeResiduals",
    "GateAttention",
    "Heads",
    "InlineAttentionFunctions",
    "InsertStandIns",
    "KVNames",
    "Kind",
    "LengthLost",
    "LengthMove",
    "LowerOperators",
    "Lowered",
    "LoweringRefused",
    "MovePastLength",
    "NoMatch",
    "Removal",
    "RemoveAttention",
    "ResidualMerge",
    "StandIn",
    "SurgeryRefused",
    "Sweep",
    "UnfuseSkipNorms",
    "apply_removal",
    "block_form",
    "cut",
    "find_attention",
    "find_blocks",
    "find_read",
    "heads_of",
    "lower_operators",
    "operator_name",
    "plan_removal",
    "remove_attention",
    "residual_names",
    "set_element_types",
    "weights_of",
]
