"""The configuration of the Python model that generates."""

from __future__ import annotations

from gatenorm_export.deploying.triton.config_text import Value, Word
from gatenorm_export.deploying.triton.configs import check_batch, instance_group
from gatenorm_export.deploying.triton.request import RuntimeName, TritonRequest
from gatenorm_export.errors import RefusedError
from gatenorm_export.records import BundleEngine, BundleManifest, Decoding

_INPUTS = (
    ("text_input", "TYPE_STRING", 1),
    ("input_ids", "TYPE_INT64", -1),
    ("max_tokens", "TYPE_INT64", 1),
    ("stream", "TYPE_BOOL", 1),
    ("ignore_eos", "TYPE_BOOL", 1),
)
_OUTPUTS = (("text_output", "TYPE_STRING", 1), ("output_ids", "TYPE_INT64", -1), ("finish_reason", "TYPE_STRING", 1))


def choose_runtime(manifest: BundleManifest, asked: RuntimeName | None) -> tuple[RuntimeName, BundleEngine | None]:
    """What the Python model runs: ONNX Runtime, or TensorRT with an engine.

    Raises:
        RefusedError: the bundle has no graph, or no engine, for what was asked.
    """
    if asked is None:
        asked = "onnxruntime" if manifest.graph is not None else "tensorrt"
    if asked == "onnxruntime":
        if manifest.graph is None:
            raise RefusedError("--runtime onnxruntime: the bundle has no ONNX graph")
        return asked, None
    if not manifest.engines:
        raise RefusedError("--runtime tensorrt: the bundle has no engine; bundle the run with --engine FILE")
    if len(manifest.engines) > 1:
        names = ", ".join(engine.file for engine in manifest.engines)
        raise RefusedError(f"--runtime tensorrt: the bundle has several engines ({names}); bundle one of them")
    return asked, manifest.engines[0]


def max_context(manifest: BundleManifest, engine: BundleEngine | None, asked: int | None) -> int:
    """The most tokens of prompt and answer together.

    Raises:
        RefusedError: nothing tells, or more was asked for than the model or the engine takes.
    """
    decoding = manifest.decoding
    assert decoding is not None
    known = [decoding.max_positions] if decoding.max_positions is not None else []
    if engine is not None:
        known.append(_context_of(engine, decoding))
    if asked is None and not known:
        raise RefusedError("the bundle does not say how many positions the model has; give --max-context")
    if asked is not None and known and asked > min(known):
        raise RefusedError(f"--max-context {asked}: the bundle takes {min(known)} at most")
    return asked if asked is not None else min(known)


def _context_of(engine: BundleEngine, decoding: Decoding) -> int:
    """The longest cache that a step may be put on, and the new token."""
    lengths = []
    for profile in engine.profiles:
        bounds = {bound.input: bound for bound in profile.bounds}
        pasts = [bounds[cache.past].max[cache.length_axis] for cache in decoding.caches]
        lengths.append(min(pasts) + 1 if pasts else bounds[decoding.token_input].max[1])
    return max(lengths)


def largest_batch(engine: BundleEngine, manifest: BundleManifest) -> int:
    """The largest batch that every profile of an engine takes."""
    assert manifest.decoding is not None
    tokens = manifest.decoding.token_input
    return min(bound.max[0] for profile in engine.profiles for bound in profile.bounds if bound.input == tokens)


def generating_config(name: str, manifest: BundleManifest, request: TritonRequest) -> dict[str, Value]:
    """The configuration. Requests are batched by the model itself, since those that stream end at different times.

    Raises:
        RefusedError: see :func:`choose_runtime` and :func:`max_context`; or the engine takes smaller batches.
    """
    runtime, engine = choose_runtime(manifest, request.runtime)
    load = request.load
    if engine is not None:
        check_batch(load.max_batch, largest_batch(engine, manifest), engine.file)
    parameters = {
        "runtime": runtime,
        "threads": request.placement.threads,
        "max_context": max_context(manifest, engine, load.max_context),
        "default_max_tokens": load.default_max_tokens,
        "max_batch": load.max_batch,
        "max_running": load.max_running,
        "max_waiting": load.max_waiting,
        "drain_seconds": load.drain_seconds,
    } | ({"engine": engine.file} if engine is not None else {})
    kind = "gpu" if runtime == "tensorrt" else request.placement.kind
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "model_transaction_policy": {"decoupled": True},
        "input": [
            {"name": entry, "data_type": Word(dtype), "dims": [length], "optional": True}
            for entry, dtype, length in _INPUTS
        ],
        "output": [{"name": entry, "data_type": Word(dtype), "dims": [length]} for entry, dtype, length in _OUTPUTS],
        "instance_group": instance_group(request.placement, kind),
        "parameters": [{"key": key, "value": {"string_value": str(value)}} for key, value in parameters.items()],
    }
