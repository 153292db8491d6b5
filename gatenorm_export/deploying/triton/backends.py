"""A graph or engine as Triton's own backends serve it: a decoder one step a request, the caches kept by the server as
implicit state, everything else one call.

The server turns the open length of a state into 1 for the first request of a sequence, whatever the configuration says
of its initial state; a cache of length 0 cannot be had. So a sequence begins with one position of zeros, which the mask
of every request hides: clients send a mask of 1 + past + step, its first element 0, and positions that do not count it.
"""

from __future__ import annotations

import dataclasses

from gatenorm_export.deploying.triton.config_text import Value
from gatenorm_export.deploying.triton.configs import batchable, check_batch, data_type, dims, instance_group, tensor
from gatenorm_export.deploying.triton.request import TritonRequest
from gatenorm_export.errors import RefusedError
from gatenorm_export.records import BundleEngine, BundleGraph, CacheTensor, Decoding, ProfileBounds, TensorSpec

IDLE_MICROSECONDS = 60_000_000
"""A sequence whose client has gone loses its caches after so long; Triton's own default, a second, would end a
conversation while its user reads."""


@dataclasses.dataclass(frozen=True)
class Backend:
    """A backend and what it serves: the tensors of its file, the caches among them, and what the file is called."""

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    caches: tuple[CacheTensor, ...]
    file: str
    profiles: int = 0
    largest_batch: int | None = None


def onnx_backend(graph: BundleGraph, decoding: Decoding | None) -> Backend:
    """The graph on Triton's ONNX Runtime backend; ``decoding`` is None of what is no decoder."""
    caches = decoding.caches if decoding is not None else ()
    return Backend("onnxruntime_onnx", graph.inputs, graph.outputs, caches, graph.file)


def engine_backend(engine: BundleEngine, decoding: Decoding) -> Backend:
    """An engine on Triton's TensorRT backend; its caches may be narrower than the graph's.

    Raises:
        RefusedError: no prompt fits behind the position that a sequence begins with.
    """
    dtypes = {spec.name: spec.dtype for spec in engine.inputs}
    caches = tuple(cache.model_copy(update={"dtype": dtypes[cache.past]}) for cache in decoding.caches)
    longest = _bounds_of_longest_step(engine, decoding.token_input)
    for cache in caches:
        if longest[cache.past].max[cache.length_axis] < 1:
            raise RefusedError(
                f"{engine.file}: takes prompts on an empty cache only, and Triton's TensorRT backend begins with one "
                "position; build it with a --context longer than --prompt"
            )
    batch = longest[decoding.token_input].max[0]
    inputs, outputs = engine.inputs, engine.outputs
    return Backend("tensorrt_plan", inputs, outputs, caches, "model.plan", len(engine.profiles), batch)


def _bounds_of_longest_step(engine: BundleEngine, tokens: str) -> dict[str, ProfileBounds]:
    """The bounds of the profile that takes the longest prompts."""
    profiles = [{bound.input: bound for bound in profile.bounds} for profile in engine.profiles]
    return max(profiles, key=lambda bounds: bounds[tokens].max[1])


def check_stepping(decoding: Decoding) -> None:
    """Make sure that a decoder can begin with a hidden position.

    Raises:
        RefusedError: it has no mask to hide it with.
    """
    if decoding.caches and decoding.mask_input is None:
        raise RefusedError(
            "the decoder has no mask input, and Triton begins a sequence with one position of cache, which only a mask "
            "could hide; use the generating model"
        )


def backend_config(name: str, backend: Backend, request: TritonRequest) -> dict[str, Value]:
    """The configuration of a model that one of Triton's own backends serves; Triton batches requests of one shape.

    Raises:
        RefusedError: the batch that was asked for is more than it takes.
    """
    check_batch(request.load.max_batch, backend.largest_batch, name)
    # Caches whose first dimension is not the batch's cannot be batched by Triton.
    batched = batchable((*backend.inputs, *backend.outputs)) and all(cache.batch_axis == 0 for cache in backend.caches)
    if not batched:
        check_batch(request.load.max_batch, 1, f"{name}, whose tensors do not all begin with an open batch dimension,")
    kept = {name for cache in backend.caches for name in (cache.past, cache.present)}
    on_gpu = backend.platform == "tensorrt_plan"
    config: dict[str, Value] = {
        "name": name,
        "platform": backend.platform,
        "default_model_filename": backend.file,
        "max_batch_size": request.load.max_batch if batched else 0,
        "input": [tensor(spec, batched=batched) for spec in backend.inputs if spec.name not in kept],
        "output": [tensor(spec, batched=batched) for spec in backend.outputs if spec.name not in kept],
        "instance_group": instance_group(
            request.placement, "gpu" if on_gpu else request.placement.kind, profiles=backend.profiles
        ),
    }
    if backend.caches:
        config["sequence_batching"] = _sequence_batching(backend, request, batched)
    elif batched and request.load.max_batch > 1:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": request.load.queue_delay_us}
    return config


def _sequence_batching(backend: Backend, request: TritonRequest, batched: bool) -> dict[str, Value]:
    """Steps of different sequences are batched by the oldest-first strategy where their shapes are alike, which the
    shapes of tokens and mask tell; of the direct strategy an instance could keep no more sequences than a batch has."""
    oldest: dict[str, Value] = {"max_candidate_sequences": max(request.load.max_running, request.load.max_batch)}
    if batched and request.load.max_batch > 1:
        oldest["max_queue_delay_microseconds"] = request.load.queue_delay_us
    return {
        "max_sequence_idle_microseconds": IDLE_MICROSECONDS,
        "oldest": oldest,
        "state": [_state(cache, batched) for cache in backend.caches],
    }


def _state(cache: CacheTensor, batched: bool) -> dict[str, Value]:
    shape = dims(cache.shape[1:] if batched else cache.shape)
    return {
        "input_name": cache.past,
        "output_name": cache.present,
        "data_type": data_type(cache.dtype),
        "dims": shape,
        "initial_state": {
            "name": f"{cache.past} at the beginning",
            "data_type": data_type(cache.dtype),
            "dims": [1 if length == -1 else length for length in shape],
            "zero_data": True,
        },
    }
