"""How a bundled decoder is stepped: from the graph's interface and the model's configs."""

from __future__ import annotations

from gatenorm_export.bundling.interface import GraphInterface
from gatenorm_export.decode_signature import MASK, POSITIONS, TOKENS
from gatenorm_export.model_configs import ModelConfigs
from gatenorm_export.records import Decoding, TensorSpec


def decoding_of(interface: GraphInterface, configs: ModelConfigs) -> Decoding | str:
    """The decoding of a decoder's graph, or why a client could not step it by the manifest alone."""
    graph = interface.graph
    inputs = {spec.name: spec for spec in graph.inputs}
    if TOKENS not in inputs:
        return f"it takes no {TOKENS}"
    if interface.no_caches:
        return interface.no_caches
    cached = {cache.past for cache in interface.caches}
    unknown = [name for name in inputs if name not in {TOKENS, MASK, POSITIONS, *cached}]
    if unknown:
        return f"it takes {', '.join(unknown[:3])} beside tokens, mask, positions and caches"
    logits = next((spec for spec in graph.outputs if spec.name == "logits"), graph.outputs[0])
    if len(logits.shape) != 3:
        return f"its output {logits.name} has {len(logits.shape)} dimensions, logits have 3"
    vocabulary = vocabulary_of(logits, configs)
    if vocabulary is None:
        return "neither the graph nor a config tells how many tokens there are"
    return Decoding(
        token_input=TOKENS,
        mask_input=MASK if MASK in inputs else None,
        position_input=POSITIONS if POSITIONS in inputs else None,
        logits_output=logits.name,
        caches=interface.caches,
        vocab_size=vocabulary,
        max_positions=configs.max_positions,
        bos_token_id=configs.token("bos_token_id"),
        eos_token_ids=configs.eos_token_ids,
        pad_token_id=configs.token("pad_token_id"),
    )


def vocabulary_of(logits: TensorSpec, configs: ModelConfigs) -> int | None:
    """How many tokens there are: the last length of the logits, or what a config says where that is open."""
    last = logits.shape[-1] if logits.shape else None
    return last if isinstance(last, int) else configs.vocab_size
