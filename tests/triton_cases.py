"""A tiny bundle to serve, what it answers when it is run directly, and clients of a real server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from model_zoo import row

from gatenorm_export.bundling import BundleRequest, make_bundle
from gatenorm_export.deploying.triton import RECORD_NAME
from gatenorm_export.exporting import export_model
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import TritonRepository
from gatenorm_export.sources import resolve_model

MODEL = "tiny"
DROPPED = (1, 3)
# Long answers are what a client can leave in the middle.
POSITIONS = 16384
TYPES = {"text_input": "BYTES", "input_ids": "INT64", "max_tokens": "INT64", "stream": "BOOL", "ignore_eos": "BOOL"}
_DTYPES = {"BYTES": np.object_, "INT64": np.int64, "BOOL": np.bool_, "FP32": np.float32}


def tiny_bundle(folder: Path) -> Path:
    """A decoder of 4 layers, 2 of them without attention, with its tokenizer."""
    model = dataclasses.replace(row("llama-gqa"), extra={"max_position_embeddings": POSITIONS})
    export_model(resolve_model(str(model.save(folder / "checkpoint"))), folder / "base")
    prune_graph(folder / "base" / "model.onnx", folder / "pruned", layers=DROPPED)
    make_bundle(BundleRequest(source=folder / "pruned", out=folder / "bundle", name=MODEL))
    return folder / "bundle"


def direct(bundle: Path, prompt: list[int], max_tokens: int, *, hidden: int = 0) -> list[int]:
    """Greedy tokens of the bundle's graph, by what its manifest says and with ONNX Runtime alone.

    ``hidden`` positions of zeros lie in the cache before the prompt, and the mask hides them.
    """
    import onnxruntime

    manifest = json.loads((bundle / "manifest.json").read_text())
    decoding = manifest["decoding"]
    session = onnxruntime.InferenceSession(str(bundle / manifest["graph"]["file"]), providers=["CPUExecutionProvider"])
    names = [decoding["logits_output"], *(cache["present"] for cache in decoding["caches"])]
    past = []
    for cache in decoding["caches"]:
        shape = [size if isinstance(size, int) else 1 for size in cache["shape"]]
        shape[cache["length_axis"]] = hidden
        past.append(np.zeros(shape, cache["dtype"]))
    tokens, step, length = [], list(prompt), 0
    while len(tokens) < max_tokens:
        end = length + len(step)
        feed = {
            decoding["token_input"]: np.array([step], np.int64),
            decoding["mask_input"]: np.array([[0] * hidden + [1] * end], np.int64),
            decoding["position_input"]: np.arange(length, end, dtype=np.int64)[None],
        }
        feed |= {cache["past"]: value for cache, value in zip(decoding["caches"], past, strict=True)}
        logits, *past = session.run(names, feed)
        length, step = end, [int(logits[0, -1].argmax())]
        tokens += step
        if step[0] in decoding["eos_token_ids"]:
            break
    return tokens


def ask(address: str, path: str, body: dict, *, model: str = MODEL) -> tuple[int, dict]:
    """POST to a model's endpoint: the status, and the answer's JSON."""
    request = urllib.request.Request(f"http://{address}/v2/models/{model}/{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        # Read and closed: a server that shuts down waits for connections.
        with error:
            return error.code, json.loads(error.read())


def ask_stream(address: str, body: dict, *, model: str = MODEL) -> list[dict]:
    """The events of a model's generate_stream."""
    request = urllib.request.Request(
        f"http://{address}/v2/models/{model}/generate_stream", json.dumps(body | {"stream": True}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def open_stream(address: str, body: dict) -> socket.socket:
    """A connection that has asked for a stream and has read nothing of it."""
    host, port = address.split(":")
    text = json.dumps(body | {"stream": True})
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(
        f"POST /v2/models/{MODEL}/generate_stream HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(text)}\r\n\r\n"
        f"{text}".encode()
    )
    return connection


@dataclasses.dataclass
class GrpcStream:
    """A decoupled stream of one request."""

    client: object
    answers: queue.Queue
    ended: bool = False
    """Whether :meth:`rest` has seen the end."""

    def rest(self) -> tuple[list[int], str, str]:
        """Tokens, text, and how it ended: the finish reason, or an error."""
        tokens: list[int] = []
        text = ""
        while True:
            answer, error = self.answers.get(timeout=60)
            if error is not None:
                self.ended = True
                return tokens, text, f"error: {error}"
            tokens += answer.as_numpy("output_ids").tolist()
            text += answer.as_numpy("text_output")[0].decode()
            reason = answer.as_numpy("finish_reason")[0].decode()
            if reason:
                self.ended = True
                return tokens, text, reason


@contextlib.contextmanager
def grpc_stream(address: str, *, model: str = MODEL, types: dict[str, str] = TYPES, **tensors) -> Iterator[GrpcStream]:
    """Ask over gRPC; each of ``tensors`` is a value or a list of them. Cancelled where the block ends first.

    A stream that has its answer is closed without cancelling: Triton may keep a request, and the model with it, that is
    cancelled while its last response is on the way.
    """
    import tritonclient.grpc as grpc

    inputs = []
    for name, value in tensors.items():
        array = np.array(value if isinstance(value, list) else [value], _DTYPES[types[name]])
        inputs.append(grpc.InferInput(name, list(array.shape), types[name]))
        inputs[-1].set_data_from_numpy(array)
    client = grpc.InferenceServerClient(address)
    answers: queue.Queue = queue.Queue()
    stream = GrpcStream(client, answers)
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    try:
        client.async_stream_infer(model, inputs)
        yield stream
    finally:
        client.stop_stream(cancel_requests=not stream.ended)
        client.close()


def resident_bytes(process: int) -> int:
    """The memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


def processor_ticks(process: int) -> int:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def generating_repository(repository: Path, folder: Path) -> tuple[str, Path]:
    """The generating model of a repository alone, linked into ``folder``, and its name."""
    record = TritonRepository.load(repository / RECORD_NAME)
    (name,) = (model.name for model in record.models if model.backend == "python")
    folder.mkdir()
    (folder / name).symlink_to(repository / name, target_is_directory=True)
    return name, folder


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Ask again and again; fail when it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.05)
