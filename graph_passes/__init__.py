"""ONNX graph passes that find attention sublayers and take them out. Imports onnx_ir and the standard library only."""

from graph_passes.bypass_attention import BypassAttention
from graph_passes.drop_cache_io import DropCacheIO, KVNames
from graph_passes.find_attention import LAYERS_KEY, N_LAYERS_KEY, find_attention
from graph_passes.move_past_length import MovePastLength
from graph_passes.removal import Removal, plan_removal
from graph_passes.remove_attention import remove_attention
from graph_passes.sites import (
    AttentionCore,
    AttentionSite,
    AttentionSites,
    CacheTensors,
    NoMatch,
    ResidualMerge,
    SurgeryRefused,
)
from graph_passes.sweep import Sweep

__all__ = [
    "LAYERS_KEY",
    "N_LAYERS_KEY",
    "AttentionCore",
    "AttentionSite",
    "AttentionSites",
    "BypassAttention",
    "CacheTensors",
    "DropCacheIO",
    "KVNames",
    "MovePastLength",
    "NoMatch",
    "Removal",
    "ResidualMerge",
    "SurgeryRefused",
    "Sweep",
    "find_attention",
    "plan_removal",
    "remove_attention",
]
