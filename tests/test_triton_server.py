"""The generating model on a real tritonserver, the wheel's with the Python backend: answers, streams, and bad clients.

One server for all tests but the last, which shuts one down. The server's environment has no gatenorm.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from triton_cases import (
    MODEL,
    TYPES,
    ask,
    ask_stream,
    direct,
    grpc_stream,
    open_stream,
    processor_ticks,
    resident_bytes,
    tiny_bundle,
    wait_until,
)

from benchmarks.triton.server import ServerError, Triton, environment, serving
from gatenorm_export.deploying.triton import Load, TritonRequest, write_repository

PROMPT = [5, 6, 7]
LONG = {"input_ids": PROMPT, "max_tokens": 16000, "ignore_eos": True}
BATCHED = "batched"

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the server in the wheel is Linux's")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        environment()
    except ServerError as error:
        pytest.skip(str(error))
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("triton")
    write_repository(TritonRequest(bundle, folder / "models", models=("generate",)))
    load = Load(max_batch=4, max_running=1)
    write_repository(TritonRequest(bundle, folder / "more", name=BATCHED, models=("generate",), load=load))
    with serving(folder / "models", folder / "run", [f"--model-repository={folder / 'more'}"]) as server:
        yield server


def words(tokens: list[int]) -> str:
    """What the tiny tokenizer makes of tokens; special ones have no text."""
    return " ".join(f"w{token}" for token in tokens if token > 3)


def test_http_answers_are_the_bundles_tokens(server: Triton, bundle: Path) -> None:
    expected = direct(bundle, PROMPT, 12)
    status, answer = ask(server.http, "generate", {"input_ids": PROMPT, "max_tokens": 12})
    assert (status, answer["output_ids"], answer["text_output"]) == (200, expected, words(expected))
    assert answer["finish_reason"] == ("length" if len(expected) == 12 else "stop")
    _, of_text = ask(server.http, "generate", {"text_input": words(PROMPT), "max_tokens": 12})
    assert of_text["output_ids"] == expected
    # 64 tokens unless the client says.
    _, of_default = ask(server.http, "generate", {"input_ids": PROMPT, "ignore_eos": True})
    assert len(of_default["output_ids"]) == 64


def test_streams_over_http_and_grpc_are_the_same_token_by_token(server: Triton, bundle: Path) -> None:
    expected = direct(bundle, PROMPT, 12)
    events = ask_stream(server.http, {"text_input": words(PROMPT), "max_tokens": 12})
    assert [event["output_ids"] for event in events] == expected
    assert "".join(event["text_output"] for event in events) == words(expected)
    assert [event["finish_reason"] for event in events[:-1]] == [""] * (len(expected) - 1)
    with grpc_stream(server.grpc, text_input=words(PROMPT), max_tokens=12, stream=True) as stream:
        tokens, text, reason = stream.rest()
    assert (tokens, text, reason) == (expected, words(expected), events[-1]["finish_reason"])


@pytest.mark.parametrize("model", [MODEL, BATCHED])
def test_concurrent_clients_get_their_own_answers(server: Triton, bundle: Path, model: str) -> None:
    """Prompts of unlike length; the second model decodes up to four of them in one batch, padded on the left."""
    prompts = [[4 + 9 * index + step for step in range(2 + 3 * index)] for index in range(6)]

    def over_grpc(prompt: list[int]) -> list[int]:
        with grpc_stream(server.grpc, model=model, input_ids=prompt, max_tokens=20, stream=True) as stream:
            return stream.rest()[0]

    def over_http(prompt: list[int]) -> list[int]:
        return ask(server.http, "generate", {"input_ids": prompt, "max_tokens": 20}, model=model)[1]["output_ids"]

    with ThreadPoolExecutor(12) as pool:
        found = [pool.submit(way, prompt) for prompt in prompts for way in (over_grpc, over_http)]
        answers = [future.result() for future in found]
    expected = [direct(bundle, prompt, 20) for prompt in prompts for _ in range(2)]
    assert answers == expected


BAD = {
    "negative max_tokens": ({"input_ids": PROMPT, "max_tokens": -1}, "ask for one token at least"),
    "no prompt": ({"max_tokens": 4}, "text_input or as input_ids"),
    "two prompts": ({"input_ids": PROMPT, "text_input": "w5", "max_tokens": 4}, "not as both"),
    "empty prompt": ({"text_input": "", "max_tokens": 4}, "the prompt is empty"),
    "bad UTF-8": ({"text_input": b"w5 \xff\xfe", "max_tokens": 4}, "not UTF-8: invalid start byte at byte 3"),
    "unknown token": ({"input_ids": [5, 128], "max_tokens": 4}, "token 128 is not in the vocabulary of 128"),
    "negative token": ({"input_ids": [-1], "max_tokens": 4}, "token -1 is not in"),
    "prompt too long": ({"input_ids": [5] * 16384, "max_tokens": 4}, "exceed the context of 16384"),
    "text too long": ({"text_input": "w5 " * 500_000, "max_tokens": 4}, "exceeds 16383 tokens"),
    "answer too long": ({"input_ids": PROMPT, "max_tokens": 2**40}, "1099511627776 new ones exceed the context"),
    "several numbers": ({"input_ids": PROMPT, "max_tokens": [1, 2]}, "unexpected shape"),
    "wrong type": ({"input_ids": PROMPT, "max_tokens": 4}, "FP32"),
}


def test_a_bad_request_gets_an_error_and_the_others_an_answer(server: Triton, bundle: Path) -> None:
    expected = direct(bundle, PROMPT, 400)
    with grpc_stream(server.grpc, input_ids=PROMPT, max_tokens=400, stream=True) as good:
        for name, (tensors, message) in BAD.items():
            types = TYPES | ({"max_tokens": "FP32"} if name == "wrong type" else {})
            with grpc_stream(server.grpc, types=types, **tensors) as bad:
                tokens, _, reason = bad.rest()
            assert not tokens, name
            assert reason.startswith("error"), name
            assert message in reason, (name, reason)
        assert good.rest()[0] == expected
    for value, message in (("many", "JSON"), (2**40, "1099511627776 new ones exceed the context"), (2**70, "")):
        status, answer = ask(server.http, "generate", {"text_input": "w5", "max_tokens": value})
        assert status >= 400
        assert message in answer["error"]


def test_a_client_that_vanishes_is_not_computed_for(server: Triton) -> None:
    (process, *_) = processes_of(server, MODEL)
    connection = open_stream(server.http, LONG)
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    with grpc_stream(server.grpc, stream=True, **LONG) as stream:
        stream.answers.get(timeout=60)
        assert not idle(process)
    connection.close()
    wait_until(lambda: idle(process))


def test_a_slow_client_holds_up_nobody(server: Triton, bundle: Path) -> None:
    connection = open_stream(server.http, LONG | {"max_tokens": 1500})
    expected = direct(bundle, PROMPT, 12)
    # It reads nothing, while others ask and are answered.
    for _ in range(5):
        assert ask(server.http, "generate", {"input_ids": PROMPT, "max_tokens": 12})[1]["output_ids"] == expected
    received = b""
    while b'"length"' not in received[-4096:]:
        piece = connection.recv(65536)
        assert piece
        received += piece
    connection.close()
    assert received.count(b"data: ") == 1500


def test_nothing_is_kept_of_requests_that_ended(server: Triton) -> None:
    """Caches, responses, shared memory: many rounds of answers, errors and vanished clients leave what two did."""
    (process, *_) = processes_of(server, MODEL)

    def round_of_requests() -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: ask(server.http, "generate", LONG | {"max_tokens": 400}), range(4)))
        for _ in range(4):
            ask(server.http, "generate", {"max_tokens": 1})
            # Not over gRPC: one of many hundred streams that are cancelled there crashes Triton 2.51 itself.
            connection = open_stream(server.http, LONG)
            assert connection.recv(4096)
            connection.close()

    round_of_requests()
    round_of_requests()
    before, threads = resident_bytes(process), len(list(Path(f"/proc/{process}/task").iterdir()))
    regions = shared_regions(server)
    for _ in range(4):
        round_of_requests()
    # One answer of 400 tokens has 200 KB of cache; a round that kept them would leave nearly a megabyte.
    assert resident_bytes(process) - before < 2_000_000
    assert len(list(Path(f"/proc/{process}/task").iterdir())) == threads
    assert shared_regions(server) == regions


def test_a_server_that_shuts_down_tells_those_who_wait_and_ends_by_itself(bundle: Path, tmp_path: Path) -> None:
    load = Load(max_running=1, drain_seconds=1)
    write_repository(TritonRequest(bundle, tmp_path / "models", models=("generate",), load=load))
    server = Triton(tmp_path / "models", tmp_path / "run", ["--exit-timeout-secs=30"])
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(server.stop, 1)
        server.wait_until_ready()
        (process,) = server.python_processes()
        # Not streamed: the process ends before a client that lags behind has read thousands of tokens.
        with grpc_stream(server.grpc, **LONG) as running:
            wait_until(lambda: not idle(process))
            with grpc_stream(server.grpc, **LONG) as waiting:
                time.sleep(0.5)
                code = pool.submit(server.stop, 60)
                time.sleep(0.5)
                with grpc_stream(server.grpc, input_ids=PROMPT, max_tokens=2) as late:
                    assert late.rest()[2].startswith("error")
                for client, message in (
                    (running, "the answer is not complete"),
                    (waiting, "the request was not begun"),
                ):
                    tokens, _, reason = client.rest()
                    assert not tokens
                    assert message in reason
        # Long before its own time-out, with nothing left of the model and no shared memory.
        assert code.result() == 0, server.log[-2000:]
    assert not Path(f"/proc/{process}").exists()
    assert shared_regions(server) == 0


def processes_of(server: Triton, model: str) -> list[int]:
    """The processes of a model's instances."""
    found = [
        process
        for process in server.python_processes()
        if f"/{model}/".encode() in Path(f"/proc/{process}/cmdline").read_bytes()
    ]
    assert found
    return found


def idle(process: int) -> bool:
    """Whether a process uses no processor time for half a second."""
    before = processor_ticks(process)
    time.sleep(0.5)
    return processor_ticks(process) - before <= 1


def shared_regions(server: Triton) -> int:
    port = server.http.split(":")[1]
    return len(list(Path("/dev/shm").glob(f"gatenorm-{port}-*")))
