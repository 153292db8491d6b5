"""Text in, an encoder's outputs out: its tokenizer as a model before the graph, and the ensemble of both."""

from __future__ import annotations

from gatenorm_export.bundling import Bundle
from gatenorm_export.deploying.triton.config_text import Value, Word
from gatenorm_export.deploying.triton.configs import batchable, tensor
from gatenorm_export.deploying.triton.request import TritonRequest
from gatenorm_export.errors import RefusedError
from gatenorm_export.model_configs import configs_in
from gatenorm_export.records import BundleGraph

TEXT, TOKENIZED = "text", ("input_ids", "attention_mask", "token_type_ids")


def check_text_encoder(graph: BundleGraph) -> None:
    """Make sure that a tokenizer gives all that the graph takes.

    Raises:
        RefusedError: it does not.
    """
    others = [spec.name for spec in graph.inputs if spec.name not in TOKENIZED or spec.dtype != "int64"]
    if others:
        raise RefusedError(f"the graph takes {', '.join(others)}, which no tokenizer gives")
    if not batchable((*graph.inputs, *graph.outputs)):
        raise RefusedError("the graph's tensors do not all begin with an open batch dimension")


def max_length(bundle: Bundle, asked: int | None) -> int:
    """The most tokens of a text: what was asked for, or the positions that the bundle's config.json tells.

    Raises:
        RefusedError: neither tells, or more was asked for than there are.
    """
    known = configs_in(bundle.folder).max_positions
    if asked is not None and known is not None and asked > known:
        raise RefusedError(f"--max-context {asked}: the bundle takes {known} at most")
    if asked is not None:
        return asked
    if known is None:
        raise RefusedError("the bundle does not say how many positions the model has; give --max-context")
    return known


def tokenizing_config(name: str, graph: BundleGraph, request: TritonRequest, max_length: int) -> dict[str, Value]:
    """The Python model that makes an encoder's inputs of text; texts of more than ``max_length`` tokens are refused."""
    return {
        "name": name,
        "backend": "python",
        "default_model_filename": "tokenizing_model.py",
        "max_batch_size": request.load.max_batch,
        "input": [{"name": TEXT, "data_type": Word("TYPE_STRING"), "dims": [1]}],
        "output": [tensor(spec, batched=True) for spec in graph.inputs],
        "instance_group": [{"count": request.placement.instances, "kind": Word("KIND_CPU")}],
        "parameters": [{"key": "max_length", "value": {"string_value": str(max_length)}}],
    }


def ensemble_config(name: str, tokenizing: str, forward: str, graph: BundleGraph, max_batch: int) -> dict[str, Value]:
    """Text in, the encoder's outputs out: the tokenizer's model and the graph's, one behind the other."""
    inputs, outputs = ([spec.name for spec in specs] for specs in (graph.inputs, graph.outputs))
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": max_batch,
        "input": [{"name": TEXT, "data_type": Word("TYPE_STRING"), "dims": [1]}],
        "output": [tensor(spec, batched=True) for spec in graph.outputs],
        "ensemble_scheduling": {
            "step": [
                _step(tokenizing, {TEXT: TEXT}, {entry: entry for entry in inputs}),
                _step(forward, {entry: entry for entry in inputs}, {entry: entry for entry in outputs}),
            ]
        },
    }


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, Value]:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
        "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
    }
