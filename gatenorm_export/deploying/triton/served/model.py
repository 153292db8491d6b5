"""Triton's Python backend loads this file: a bundle that answers prompts with greedy tokens, streamed if asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from gatenorm_export.deploying.triton.served.detokenizing import TextStream
from gatenorm_export.deploying.triton.served.generation import Generation, Piece, Row
from gatenorm_export.deploying.triton.served.manifest import Bundle, read_bundle
from gatenorm_export.deploying.triton.served.prompts import Ask, BadRequestError, BundledTokenizer, Limits, read_prompt
from gatenorm_export.deploying.triton.served.runtime import Runtime
from gatenorm_export.deploying.triton.served.scheduling import BusyError, ClosedError, Drain, Places, Scheduler

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """The server makes one for each instance, in a process of its own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load tokenizer and decoder. What is raised here is shown by the server, and the model is not served."""
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        bundle = read_bundle(Path(args["model_repository"]) / args["model_version"] / "bundle")
        self._tokenizer = BundledTokenizer(bundle.tokenizer) if bundle.tokenizer is not None else None
        self._limits = Limits(
            bundle.decoding.vocabulary, int(parameters["max_context"]), int(parameters["default_max_tokens"])
        )
        runtime = _runtime(bundle, parameters, args)
        stops = bundle.decoding.stops
        self._scheduler = Scheduler(
            Places(int(parameters["max_batch"]), int(parameters["max_running"]), int(parameters["max_waiting"])),
            lambda rows: Generation(runtime, rows, stops),
            Drain(lambda: _served(args), float(parameters["drain_seconds"])),
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests in; answers come from the scheduler's thread. A bad request gets an error, others do not."""
        for request in requests:
            client = _TritonClient(request.get_response_sender())
            try:
                prompt = read_prompt(_ask(request), self._tokenizer, self._limits)
                text = TextStream(self._tokenizer.decode) if self._tokenizer is not None else None
                self._scheduler.add(Row(prompt, client, text))
            except BadRequestError as error:
                client.refuse(str(error), pb_utils.TritonError.INVALID_ARG)
            except (BusyError, ClosedError) as error:
                client.refuse(str(error), pb_utils.TritonError.UNAVAILABLE)
            except Exception as error:
                client.refuse(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)

    def finalize(self) -> None:
        """The model is unloaded, or the server shuts down."""
        self._scheduler.close()


class _TritonClient:
    """A request's way back to its client."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def gone(self) -> bool:
        """Whether the request was cancelled, as it is when the client has closed its connection."""
        return bool(self._sender.is_cancelled())

    def send(self, piece: Piece) -> None:
        """One response; the last one is marked as such."""
        response = pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("text_output", np.array([piece.text.encode()], np.object_)),
                pb_utils.Tensor("output_ids", np.array(piece.tokens, np.int64)),
                pb_utils.Tensor("finish_reason", np.array([piece.reason.encode()], np.object_)),
            ]
        )
        self._sender.send(response, flags=_FINAL if piece.reason else 0)

    def fail(self, message: str) -> None:
        """An error that ends the request."""
        self.refuse(message, pb_utils.TritonError.UNAVAILABLE)

    def forget(self) -> None:
        """The mark that nothing more comes, which the server waits for even if the client does not."""
        self.refuse("the request was cancelled", pb_utils.TritonError.CANCELLED)

    def refuse(self, message: str, code: int) -> None:
        """An error of this kind, which ends the request."""
        error = pb_utils.TritonError(message, code)
        self._sender.send(pb_utils.InferenceResponse(error=error), flags=_FINAL)


def _served(args: Mapping[str, str]) -> bool:
    """Whether the server still takes requests for the model.

    Asked with a request that is never run: the server refuses it where the model is not ready, and else because it is
    not of the decoupled kind. ``pb_utils.is_model_ready`` cannot be used: a server that shuts down answers it with an
    error, and the backend may free the error's text before this process has read it, which then crashes.
    """
    probe = pb_utils.InferenceRequest(
        model_name=args["model_name"],
        model_version=int(args["model_version"]),
        requested_output_names=[],
        inputs=[],
    )
    try:
        error = probe.exec().error()
    except pb_utils.TritonModelException:  # the model is being finalized
        return False
    return error is None or "not ready" not in error.message()


def _ask(request: Any) -> Ask:
    def tensor(name: str) -> np.ndarray | None:
        found = pb_utils.get_input_tensor_by_name(request, name)
        return None if found is None else np.asarray(found.as_numpy())

    return Ask(*(tensor(name) for name in ("text_input", "input_ids", "max_tokens", "stream", "ignore_eos")))


def _runtime(bundle: Bundle, parameters: Mapping[str, str], args: Mapping[str, str]) -> Runtime:
    device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
    # Only what is used is imported: a server may have either of them.
    if parameters["runtime"] == "onnxruntime":
        from gatenorm_export.deploying.triton.served.onnx_runtime import OnnxRuntime

        if bundle.graph is None:
            raise RuntimeError("the bundle has no ONNX graph; write the repository again with --runtime tensorrt")
        return OnnxRuntime(bundle.graph, bundle.decoding, device_id=device, threads=int(parameters["threads"]))
    from gatenorm_export.deploying.triton.served.tensorrt_runtime import TensorRTRuntime

    engine, entry = bundle.engine(parameters["engine"])
    return TensorRTRuntime(engine, entry, bundle.decoding, device_id=device or 0)
