"""What runs inside the server, in this process: text from tokens, turns, errors, and engines on a stand-in for CUDA."""

from __future__ import annotations

import ctypes
import gc
import threading
import types

import numpy as np
import pytest

from gatenorm_export.deploying.triton.served.cuda import Cuda
from gatenorm_export.deploying.triton.served.detokenizing import TextStream
from gatenorm_export.deploying.triton.served.generation import PIECE, Generation, Piece, Row
from gatenorm_export.deploying.triton.served.manifest import Cache, Decoding
from gatenorm_export.deploying.triton.served.prompts import Ask, BadRequestError, Limits, Prompt, read_prompt
from gatenorm_export.deploying.triton.served.runtime import Step
from gatenorm_export.deploying.triton.served.scheduling import BusyError, ClosedError, Drain, Places, Scheduler
from gatenorm_export.deploying.triton.served.tensorrt_runtime import TensorRTRuntime

VOCABULARY = 50
STOP = 9


class Counting:
    """A model whose next token is the sum of all tokens before it that the mask shows, plus their number."""

    longest_step = None

    def __init__(self) -> None:
        self.steps: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()

    def step(self, step: Step, cache: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        assert self.gate.wait(10)
        self.steps.append(step.tokens.shape)
        seen = step.tokens if cache is None else np.concatenate([cache, step.tokens], axis=1)
        assert seen.shape == step.mask.shape
        # The position of the newest token is the number of those that are shown before it.
        assert (step.positions[:, -1] == step.mask.sum(axis=1) - 1).all()
        logits = np.zeros((len(seen), VOCABULARY), np.float32)
        logits[np.arange(len(seen)), following(seen, step.mask)] = 1.0
        return logits, seen


def following(seen: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return ((seen * mask).sum(axis=1) + mask.sum(axis=1)) % VOCABULARY


def answer_of(prompt: tuple[int, ...], n: int) -> list[int]:
    seen = list(prompt)
    for _ in range(n):
        seen.append((sum(seen) + len(seen)) % VOCABULARY)
    return seen[len(prompt) :]


class Client:
    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.error: str | None = None
        self.left = self.ended = False
        self.done = threading.Event()

    def gone(self) -> bool:
        return self.left

    def send(self, piece: Piece) -> None:
        self.pieces.append(piece)
        if piece.reason:
            self.done.set()

    def fail(self, message: str) -> None:
        self.error = message
        self.done.set()

    def forget(self) -> None:
        self.ended = True
        self.done.set()

    @property
    def tokens(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.tokens]


def row_of(prompt: tuple[int, ...], n: int, client: Client, *, stream: bool = True, ignore_eos: bool = False) -> Row:
    return Row(Prompt(prompt, n, stream=stream, ignore_eos=ignore_eos), client, None)


def run(generation: Generation) -> None:
    while generation.advance():
        pass


def test_rows_of_one_batch_have_the_answers_that_they_have_alone() -> None:
    prompts = [(3, 4), (7,), (1, 2, 3, 4, 5, 6)]
    clients = [Client() for _ in prompts]
    rows = [
        row_of(prompt, 6 + index, client) for index, (prompt, client) in enumerate(zip(prompts, clients, strict=True))
    ]
    run(Generation(Counting(), rows, frozenset()))
    for index, (prompt, client) in enumerate(zip(prompts, clients, strict=True)):
        assert client.tokens == answer_of(prompt, 6 + index)
        assert [piece.reason for piece in client.pieces] == [""] * (5 + index) + ["length"]


def test_an_answer_ends_at_a_stop_token_unless_it_is_to_be_ignored() -> None:
    prompt = next((1, second) for second in range(50) if STOP in answer_of((1, second), 6)[:4])
    answer = answer_of(prompt, 6)
    stopped, ignoring = Client(), Client()
    run(Generation(Counting(), [row_of(prompt, 6, stopped, stream=False)], frozenset({STOP})))
    run(Generation(Counting(), [row_of(prompt, 6, ignoring, ignore_eos=True)], frozenset({STOP})))
    (piece,) = stopped.pieces
    assert list(piece.tokens) == answer[: answer.index(STOP) + 1]
    assert piece.reason == "stop"
    assert ignoring.tokens == answer


def test_long_prompts_are_read_in_pieces() -> None:
    prompt = tuple(index % 7 for index in range(2 * PIECE + 5))
    model, client = Counting(), Client()
    run(Generation(model, [row_of(prompt, 3, client)], frozenset()))
    assert model.steps == [(1, PIECE), (1, PIECE), (1, 5), (1, 1), (1, 1)]
    assert client.tokens == answer_of(prompt, 3)


def scheduler_of(model: Counting, places: Places, served=lambda: True, seconds: float = 0.0) -> Scheduler:
    return Scheduler(places, lambda rows: Generation(model, rows, frozenset()), Drain(served, seconds))


def test_generations_take_turns_and_an_error_ends_one_alone() -> None:
    class Faulty(Counting):
        def step(self, step: Step, cache):
            if cache is None and step.tokens[0, 0] == 13:
                raise MemoryError("no memory for this one")
            return super().step(step, cache)

    model = Faulty()
    scheduler = scheduler_of(model, Places(batch=1, running=4, waiting=10))
    good, bad, other = Client(), Client(), Client()
    for prompt, client in (((3, 4), good), ((13,), bad), ((5,), other)):
        scheduler.add(row_of(prompt, 20, client))
    assert all(client.done.wait(10) for client in (good, bad, other))
    assert bad.error == "MemoryError: no memory for this one"
    assert (good.tokens, other.tokens) == (answer_of((3, 4), 20), answer_of((5,), 20))
    scheduler.close()


def test_what_waits_is_batched_bounded_and_told_when_the_model_goes() -> None:
    model = Counting()
    model.gate.clear()
    scheduler = scheduler_of(model, Places(batch=2, running=1, waiting=3))
    first = Client()
    scheduler.add(row_of((1,), 2, first))
    waiting = [Client() for _ in range(3)]
    deadline = threading.Event()
    while scheduler._waiting:
        deadline.wait(0.01)
    for index, client in enumerate(waiting):
        scheduler.add(row_of((2 + index,), 2, client))
    with pytest.raises(BusyError, match="3 requests are waiting already"):
        scheduler.add(row_of((9,), 2, Client()))
    model.gate.set()
    assert all(client.done.wait(10) for client in (first, *waiting))
    # Two of those that waited went together, the third alone.
    assert [shape[0] for shape in model.steps] == [1, 1, 2, 2, 1, 1]
    scheduler.close()
    with pytest.raises(ClosedError):
        scheduler.add(row_of((1,), 2, Client()))


def test_of_a_burst_as_many_are_taken_as_run_and_wait() -> None:
    """Before the thread has come to the first of them: what a free place will take does not wait."""
    model = Counting()
    model.gate.clear()
    scheduler = scheduler_of(model, Places(batch=1, running=2, waiting=3))
    clients, refused = [Client() for _ in range(8)], 0
    for index, client in enumerate(clients):
        try:
            scheduler.add(row_of((1 + index,), 2, client))
        except BusyError:
            refused += 1
    assert refused == 3
    model.gate.set()
    assert all(client.done.wait(10) for client in clients[:5])
    # And again, once all are done.
    again = [Client() for _ in range(5)]
    for client in again:
        scheduler.add(row_of((1,), 2, client))
    assert all(client.done.wait(10) for client in again)
    scheduler.close()


class Words:
    """Numbers as words, behind a token that begins every text."""

    def encode(self, text: str, limit: int) -> list[int]:
        return [0, *map(int, text.split())]


def ask_of(text: bytes, max_tokens: int | None = None) -> Ask:
    number = None if max_tokens is None else np.array([max_tokens])
    return Ask(np.array([text], np.object_), None, number, None, None)


def test_an_empty_text_is_no_prompt_even_where_a_token_begins_every_text() -> None:
    limits = Limits(vocabulary=VOCABULARY, context=32, default_tokens=8)
    assert read_prompt(ask_of(b"5"), Words(), limits).tokens == (0, 5)
    with pytest.raises(BadRequestError, match="the prompt is empty"):
        read_prompt(ask_of(b""), Words(), limits)


def test_a_request_that_does_not_say_gets_what_the_context_has_room_for() -> None:
    limits = Limits(vocabulary=VOCABULARY, context=10, default_tokens=8)
    assert read_prompt(ask_of(b"5"), Words(), limits).max_tokens == 8
    assert read_prompt(ask_of(b"5 6 7"), Words(), limits).max_tokens == 6
    with pytest.raises(BadRequestError, match="4 tokens and 7 new ones exceed the context of 10"):
        read_prompt(ask_of(b"5 6 7", 7), Words(), limits)
    with pytest.raises(BadRequestError, match="10 tokens and 1 new ones exceed"):
        read_prompt(ask_of(b"1 2 3 4 5 6 7 8 9"), Words(), limits)


def test_when_the_server_lets_the_model_go_answers_end_with_an_error() -> None:
    model, served = Counting(), threading.Event()
    scheduler = scheduler_of(model, Places(1, 1, 5), served=lambda: not served.is_set(), seconds=0.2)
    running, waiting = Client(), Client()
    scheduler.add(row_of((1,), 10**6, running))
    scheduler.add(row_of((2,), 2, waiting))
    served.set()
    assert running.done.wait(10)
    assert waiting.done.wait(10)
    assert running.error == "the server is shutting down; the answer is not complete"
    assert waiting.error == "the server is shutting down; the request was not begun"
    scheduler.close()


def test_a_client_that_is_gone_is_dropped_and_its_cache_freed() -> None:
    model, client = Counting(), Client()
    generation = Generation(model, [row_of((1,), 100, client)], frozenset())
    assert generation.advance()
    client.left = True
    assert not generation.advance()
    assert client.ended
    assert generation._cache is None
    assert len(model.steps) == 1


def test_numbers_that_are_none_are_an_error() -> None:
    class Broken(Counting):
        def step(self, step: Step, cache):
            return np.full((1, VOCABULARY), np.nan, np.float32), cache

    with pytest.raises(ArithmeticError, match="NaN"):
        Generation(Broken(), [row_of((1,), 2, Client())], frozenset()).advance()


@pytest.mark.parametrize("text", ["plain words", "käse 日本 🎉🎉", "🇫🇷", ""])
def test_pieces_of_text_join_to_the_whole(text: str) -> None:
    """Bytes as tokens, the hardest case: no token but the last of a character has a text of its own."""

    def decode(tokens) -> str:
        return bytes(tokens).decode(errors="replace")

    stream = TextStream(decode)
    pieces = [stream.push(token) for token in text.encode()]
    assert "".join([*pieces, stream.rest()]) == text
    assert all("\ufffd" not in piece for piece in pieces)
    cut = TextStream(decode)
    assert [cut.push(token) for token in "é".encode()[:1]] == [""]
    assert cut.rest() == "\ufffd"


class HostCuda:
    """CUDA's runtime library with the host's memory as the device's, which counts what is not given back."""

    def __init__(self) -> None:
        self.held: dict[int, ctypes.Array] = {}

    def cudaSetDevice(self, device) -> int:
        return 0

    def cudaStreamCreate(self, pointer) -> int:
        return 0

    def cudaMallocAsync(self, pointer, size, stream) -> int:
        memory = ctypes.create_string_buffer(size.value)
        self.held[ctypes.addressof(memory)] = memory
        pointer._obj.value = ctypes.addressof(memory)
        return 0

    def cudaFreeAsync(self, pointer, stream) -> int:
        return 0 if self.held.pop(pointer.value, None) is not None else 1

    def cudaMemcpyAsync(self, to, source, size, kind, stream) -> int:
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cudaStreamSynchronize(self, stream) -> int:
        return 0


class Context:
    """An execution context of an engine that counts as :class:`Counting` does; its cache is [batch, past], float16."""

    def __init__(self, log: list[int]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile = -1
        self.log = log

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (*self.shapes["input_ids"], VOCABULARY)

    def execute_async_v3(self, stream: int) -> bool:
        self.log.append(self.profile)
        tokens = self._array("input_ids", np.int64).copy()
        mask = self._array("attention_mask", np.int64)
        past = self._array("past", np.float16)
        seen = np.concatenate([past.astype(np.int64), tokens], axis=1)
        logits = np.zeros((*tokens.shape, VOCABULARY), np.float32)
        logits[np.arange(len(seen)), -1, following(seen, mask)] = 1.0
        self._write("logits", logits)
        self._write("present", seen.astype(np.float16))
        return True

    def _array(self, name: str, dtype) -> np.ndarray:
        shape = self.shapes[name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(ctypes.string_at(self.addresses[name], size), dtype).reshape(shape)

    def _write(self, name: str, array: np.ndarray) -> None:
        ctypes.memmove(self.addresses[name], array.tobytes(), array.nbytes)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """An engine in TensorRT's stead, its log of profiles, and the memory that it holds."""
    types_of = {"input_ids": np.int64, "attention_mask": np.int64, "past": np.float16}
    types_of |= {"logits": np.float32, "present": np.float16}
    log: list[int] = []
    names = list(types_of)
    inner = types.SimpleNamespace(
        num_io_tensors=len(names),
        get_tensor_name=names.__getitem__,
        get_tensor_dtype=lambda name: np.dtype(types_of[name]),
        create_execution_context=lambda: Context(log),
    )
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    module = types.SimpleNamespace(
        __version__="10.5.0",
        Logger=logger,
        Runtime=lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda data: inner),
        nptype=lambda dtype: dtype.type,
    )
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", module)

    def bounds(step: int, past: int) -> list[dict]:
        return [
            {"input": "input_ids", "min": [1, 1], "opt": [1, 1], "max": [2, step]},
            {"input": "attention_mask", "min": [1, 1], "opt": [1, 1], "max": [2, step + past]},
            {"input": "past", "min": [1, 0], "opt": [1, 0], "max": [2, past]},
        ]

    profiles = [{"name": "prefill", "bounds": bounds(8, 56)}, {"name": "decode", "bounds": bounds(2, 63)}]
    entry = {"flavour": "tensorrt", "flavour_version": "10.5.0", "capabilities": ["9.0"], "profiles": profiles}
    (tmp_path / "model.engine").write_bytes(b"engine")
    cache = Cache("past", "present", "float16", (None, None), batch_axis=0, length_axis=1)
    decoding = Decoding("input_ids", "attention_mask", None, "logits", (cache,), VOCABULARY, frozenset())
    library = HostCuda()

    def load():
        return TensorRTRuntime(
            tmp_path / "model.engine", entry, decoding, device_id=0, cuda=Cuda(0, load=lambda name: library)
        )

    return types.SimpleNamespace(load=load, entry=entry, log=log, library=library)


def test_an_engine_generates_with_its_caches_on_the_device(engine) -> None:
    runtime = engine.load()
    prompts = [(3, 4), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
    clients = [Client(), Client()]
    rows = [row_of(prompt, 6, client) for prompt, client in zip(prompts, clients, strict=True)]
    generation = Generation(runtime, rows, frozenset())
    run(generation)
    assert [client.tokens for client in clients] == [answer_of(prompt, 6) for prompt in prompts]
    # Eleven tokens in pieces of at most eight, which only the prefill profile takes; single tokens go to the other.
    assert engine.log == [0, 0, 1, 1, 1, 1, 1]
    del generation
    gc.collect()
    assert not engine.library.held


def test_an_engine_of_another_version_is_refused(engine) -> None:
    engine.entry["flavour_version"] = "10.4.0"
    with pytest.raises(RuntimeError, match=r"built by tensorrt 10\.4\.0, and 10\.5\.0 is installed"):
        engine.load()


def test_a_server_without_cuda_says_so() -> None:
    def missing(name: str):
        raise OSError(name)

    with pytest.raises(RuntimeError, match="CUDA's runtime library is not found"):
        Cuda(0, load=missing)
