"""bench: who is called when, what is kept on the device, what is refused, and that nothing half-written stays."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench_cases import FakeBackend
from model_zoo import row

from gatenorm_export.benching import BenchRequest, backend_for, bench_markdown, bench_tables, open_backend, run_bench
from gatenorm_export.benching.clocks import busy, read_clocks
from gatenorm_export.benching.control import within
from gatenorm_export.benching.engine_model import EngineModel
from gatenorm_export.benching.memory import ProcessMemory
from gatenorm_export.benching.protocol import STEPS, Point
from gatenorm_export.benching.statistics import speedup_apart, speedup_in_turns, timing_of
from gatenorm_export.benching.timers import WallClock
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, InputError, MissingPartError, RefusedError
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import EngineArtifact, Profile, ProfileBounds, PrunePlan
from gatenorm_export.records.bench import BenchReport, Clocks

DROP = (1, 2)
QUICK = ["--sequence", "8", "--repeats", "8", "--quiet"]


@pytest.fixture(scope="module")
def pair(exported, tmp_path_factory) -> tuple[Path, Path]:
    """A base and a pruned graph."""
    _, base, _ = exported("llama-gqa")
    pruned = tmp_path_factory.mktemp("pruned") / "model.onnx"
    prune_graph(base, pruned.parent, layers=DROP, plan_sha256="a" * 64)
    return base, pruned


def bench(*arguments: object) -> int:
    return main(["bench", *map(str, arguments)])


# --- the measuring, on models that only write down what happens


def test_turns_change_from_pair_to_pair_and_decode_goes_back() -> None:
    backend = FakeBackend()
    report = run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), repeats=160))
    ends = [place for place, line in enumerate(backend.log) if line.endswith("close")][1::2]
    assert len(ends) == report.loadings == 4
    for loading, end in enumerate(ends):
        log = backend.log[ends[loading - 1] + 1 if loading else 0 : end]
        # Two calls to count memory, then 2 rounds of warm-up and 40 of measuring, then one prefill each for decode.
        calls = [line.split()[0] for line in log if line.endswith("prefill 8")]
        first, second = ("base", "pruned") if loading % 2 == 0 else ("pruned", "base")
        assert calls[:2] == calls[-2:] == [first, second]
        assert calls[2:-2] == [first, second, second, first] * 21
    decodes = [line for line in backend.log if "decode" in line or "rewind" in line]
    longest, run = 0, 0
    for line in (line for line in decodes if line.startswith("base")):
        run = 0 if "rewind" in line else run + 1
        longest = max(longest, run)
    assert longest == STEPS
    assert report.alternating
    assert [found.speedup for found in report.speedups] == [2.0, 2.0]
    assert {(row.speedup, row.repeats) for row in report.rows} == {(2.0, 160)}
    assert report.rows[0].pruned.tokens_per_s == 8
    assert report.rows[1].pruned.tokens_per_s == 1
    assert report.base.kv_bytes_per_token == 64
    assert "a note" in report.notes
    assert backend.log[-2:] == ["pruned close", "base close"]


@pytest.mark.parametrize(("order", "free"), [("sequential", None), ("auto", 10)])
def test_one_after_the_other_where_memory_does_not_hold_both(order: str, free: int | None) -> None:
    backend = FakeBackend(free=free)
    report = run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), repeats=8, order=order))
    assert not report.alternating
    assert report.order_reason == "asked for" or "are free" in report.order_reason
    closed = backend.log.index("base close")
    assert all(line.startswith("base") for line in backend.log[: closed + 1])
    assert all(line.startswith("pruned") for line in backend.log[closed + 1 :])
    assert {row.speedup for row in report.rows} == {2.0}
    assert "one after the other" in bench_markdown(report)


def test_memory_that_holds_both_means_turns() -> None:
    backend = FakeBackend(free=10**9)
    assert run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), repeats=8)).alternating


def test_a_point_that_does_not_fit_is_named_and_the_others_are_measured() -> None:
    backend = FakeBackend()

    def fails(what: str, calls: int) -> None:
        if backend.log[-1].endswith("prefill 32"):
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    backend.fails = fails
    report = run_bench(backend, backend.pair(), BenchRequest(sequences=(8, 32, 2000), repeats=8))
    assert [row.name for row in report.rows] == ["prefill, 8 tokens, batch 1", "decode, 8 tokens, batch 1"]
    reasons = {row.name: row.reason for row in report.missing}
    assert "does not fit the memory" in reasons["prefill, 32 tokens, batch 1"]
    assert "does not fit the memory" in reasons["decode, 32 tokens, batch 1"]
    assert reasons["prefill, 2000 tokens, batch 1"] == "too long for the fake"
    assert "prefill, 32 tokens, batch 1" in report.verdict


@pytest.mark.parametrize("at", [1, 3, 9, 30])
def test_a_device_that_vanishes_ends_in_one_line_and_frees_both(at: int) -> None:
    backend = FakeBackend()

    def fails(what: str, calls: int) -> None:
        if calls >= at:
            raise RuntimeError("CUDA error: the launch failed\nand a page of traceback")

    backend.fails = fails
    with pytest.raises(RefusedError, match="CUDA error: the launch failed") as caught:
        run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), repeats=80))
    assert "\n" not in str(caught.value)
    assert "tokens" in str(caught.value)
    assert "base close" in backend.log


def test_minutes_that_are_used_up_name_the_rows() -> None:
    backend = FakeBackend()
    report = run_bench(backend, backend.pair(), BenchRequest(sequences=(8,), max_minutes=0.001))
    assert not report.rows
    assert all("--max-minutes" in row.reason for row in report.missing)
    assert "Nothing could be measured" in report.verdict


def test_the_roofline_says_what_is_left_on_the_table() -> None:
    backend = FakeBackend()
    request = BenchRequest(sequences=(8,), repeats=8)
    found = run_bench(backend, backend.pair(), request)
    assert "Every row" in found.verdict
    slow = dataclasses.replace(backend.pair(), pruned=backend.side("slow", 1.9))
    report = run_bench(backend, slow, request)
    assert all(row.roofline is not None and row.roofline.short and row.roofline.certain for row in report.rows)
    assert "left on the table in 2 of 2 rows" in report.verdict
    none = run_bench(backend, backend.pair(work=False), request)
    assert none.roofline_reason == "nothing is known"
    assert all(row.roofline is None for row in none.rows)


def test_default_lengths_end_where_the_context_does() -> None:
    backend = FakeBackend()
    report = run_bench(backend, backend.pair(longest=40), BenchRequest(repeats=8))
    assert {row.sequence for row in report.rows} == {16}
    short = run_bench(backend, backend.pair(longest=20), BenchRequest(repeats=8))
    assert {row.sequence for row in short.rows} == {2}


def test_a_control_that_differs_in_structure_fails() -> None:
    backend = FakeBackend()
    request = BenchRequest(sequences=(8,), repeats=8, control=Path("native"))
    same = run_bench(backend, backend.pair(), request)
    assert same.control is not None
    assert (same.control.passed, same.control.ratio, same.control.differences) == (True, 1.0, ())
    backend.control = lambda native, pair: backend.side("base", 2.0)
    other = run_bench(backend, backend.pair(), request).control
    assert other is not None
    assert other.passed is False
    assert any("bytes of weights" in line for line in other.differences)
    backend.control = lambda native, pair: backend.side("fast", 0.97)
    slower = run_bench(backend, backend.pair(), request).control
    assert slower is not None
    assert (slower.passed, slower.differences) == (False, ())
    assert "is slower by more than 2%" in slower.sentence


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [
        (0.985, 1.015, True),
        (0.985, 1.3, None),
        (0.7, 1.015, None),
        (0.9, 1.1, None),
        (0.9, 0.97, False),
        # Faster than one without those layers: the two are not what a control compares.
        (1.03, 1.2, False),
    ],
)
def test_a_control_holds_by_its_whole_interval(low: float, high: float, passed: bool | None) -> None:
    assert within(low, high, 0.02) is passed


def test_a_control_that_is_not_decided_has_an_exit_code_and_advice(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gatenorm_export.benching.control.speedup_of", lambda *_, order: (1.0, 0.9, 1.1))
    assert bench(*pair, *QUICK, "--control", pair[1]) == ExitCode.UNDECIDED == 15
    said = " ".join(capsys.readouterr().out.split())
    assert "is not decided: native over pruned time 1.000 (0.900 to 1.100); measure more, with --repeats" in said


@pytest.mark.parametrize(
    "changes",
    [{"repeats": 4}, {"repeats": 0}, {"batches": (0,)}, {"sequences": (8, 8)}, {"max_minutes": 0.0}],
    ids=str,
)
def test_requests_that_make_no_sense(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        BenchRequest(**changes)


# --- statistics, clocks, memory


def test_quantiles_and_their_interval() -> None:
    seconds = np.arange(1, 102) / 1000
    found = timing_of(seconds, 5)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((51, 91, 100))
    assert found.p50_low_ms < 51 < found.p50_high_ms
    assert found.tokens_per_s == pytest.approx(5 / 0.051)


def test_apart_the_interval_holds_the_ratio_and_widens_with_noise() -> None:
    rng = np.random.default_rng(1)
    calm, wild = (np.exp(rng.normal(0, sigma, (2, 400))) * [[2.0], [1.0]] for sigma in (0.01, 0.3))
    middle, low, high = speedup_apart(calm)
    assert low < 2.0 < high
    assert middle == pytest.approx(2.0, rel=0.01)
    _, low_wild, high_wild = speedup_apart(wild)
    assert high_wild - low_wild > 5 * (high - low)


def test_the_order_of_loading_is_not_in_the_ratio() -> None:
    """The model that is loaded first is 4 % slower: the same model twice is as fast as itself."""
    rng = np.random.default_rng(2)

    def loadings(speedup: float, spread: float, n: int = 4) -> list[np.ndarray]:
        slower = [np.array([[1.04], [1.0]]), np.array([[1.0], [1.04]])]
        noise = [np.exp(rng.normal(0, spread, (2, 1))) for _ in range(n)]
        calls = [np.exp(rng.normal(0, 0.02, (2, 100))) * [[speedup], [1.0]] for _ in range(n)]
        return [slower[place % 2] * noise[place] * calls[place] for place in range(n)]

    for speedup in (1.0, 1.2):
        middle, low, high = speedup_in_turns(loadings(speedup, 0), loadings(speedup, 0))
        assert low < speedup < high
        assert middle == pytest.approx(speedup, rel=0.01)
    assert speedup_in_turns(loadings(1.0, 0, 2))[0] == pytest.approx(1.0, rel=0.01)
    # What differs from loading to loading is in the interval, as far as so few of them show it.
    held = 0
    for _ in range(40):
        _, low, high = speedup_in_turns(loadings(1.0, 0.01), loadings(1.0, 0.01))
        held += low < 1 < high
    assert held >= 30


def test_the_kernel_tells_the_load_and_the_peak() -> None:
    clocks = read_clocks()
    assert clocks.load_1min is not None
    assert busy(Clocks(load_1min=3.0), 4) is not None
    assert busy(Clocks(load_1min=0.5), 4) is None
    memory = ProcessMemory()
    memory.begin()
    held = np.ones(32_000_000, np.uint8)
    peak = memory.peak()
    assert peak is not None
    assert 30e6 < peak < 200e6
    assert held[0] == 1
    assert (memory.available() or 0) > 0


# --- ONNX Runtime


def test_the_cache_of_a_step_is_the_past_of_the_next(pair: tuple[Path, Path]) -> None:
    """Against a session that is fed by hand; and the prefill's cache survives the steps."""
    import onnxruntime

    backend = open_backend("ort-cpu")
    model = backend.open(*pair).pruned.load()
    tokens = np.tile(np.arange(8, dtype=np.int64) + 3, (2, 1))
    model.prepare(tokens, 3)
    model.prefill()
    home = [value.numpy().copy() for value in model._past]
    for _ in range(3):
        model.decode()
    session = onnxruntime.InferenceSession(str(pair[1]))
    names = [entry.name for entry in session.get_inputs()]
    whole = np.concatenate([tokens, np.tile(tokens[:, -1:], (1, 3))], axis=1)
    feed = {
        "input_ids": whole,
        "attention_mask": np.ones_like(whole),
        "position_ids": np.tile(np.arange(11), (2, 1)),
    }
    feed |= {name: np.zeros((2, 2, 0, 16), np.float32) for name in names if name.startswith("past")}
    expected = session.run(None, feed)[1:]
    for found, wanted in zip(model._past, expected, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)
    assert model.kv_bytes() == sum(value.nbytes for value in expected)
    model.rewind()
    for found, wanted in zip(model._past, home, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)
    model.close()


def test_bench_writes_a_report_with_everything_that_a_gate_needs(pair, tmp_path, capsys) -> None:
    assert bench(*pair, *QUICK, "--batch", "1,2", "-o", tmp_path / "out", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    report = BenchReport.load(tmp_path / "out" / "bench.json")
    assert printed == report.to_object()
    assert [row.key for row in report.rows] == [(p, b, 8) for p in ("prefill", "decode") for b in (1, 2)]
    assert report.dropped == DROP
    assert report.n_layers == 4
    assert report.plan_sha256 == "a" * 64
    assert report.device.backend == "ort-cpu"
    assert report.command.startswith("gatenorm bench ")
    assert report.versions["onnxruntime"] in report.device.runtime
    assert report.pruned.kv_bytes_per_token == report.base.kv_bytes_per_token / 2
    assert report.pruned.work.kv_bytes_per_token == report.pruned.kv_bytes_per_token
    assert all(row.roofline is not None and row.roofline.speedup > 1 for row in report.rows)
    assert report.base.load_seconds > 0
    text = (tmp_path / "out" / "bench.md").read_text()
    assert text == bench_markdown(report)
    assert text.count("| decode |") == 2
    assert bench_tables(report)


def test_all_attention_gone_still_decodes(exported, tmp_path) -> None:
    _, base, _ = exported("llama-gqa")
    prune_graph(base, tmp_path / "none", layers=(0, 1, 2, 3))
    assert bench(base, tmp_path / "none", *QUICK, "-o", tmp_path / "r.json") == 0
    report = BenchReport.load(tmp_path / "r.json")
    assert {row.phase for row in report.rows} == {"prefill", "decode"}
    assert report.pruned.kv_bytes_per_token is None


def test_a_graph_without_cache_has_no_decode(exported, tmp_path) -> None:
    import onnx

    _, base, _ = exported("llama-gqa")
    prune_graph(base, tmp_path / "a.onnx", layers=(0, 1, 2, 3))
    model = onnx.load(str(tmp_path / "a.onnx"))
    assert len(model.graph.output) == 1
    backend = open_backend("ort-cpu")
    side = backend._side(tmp_path / "a.onnx", decodes=False)
    opened = side.load()
    assert "keeps no cache" in opened.refuses(Point("decode", 1, 8))
    assert opened.refuses(Point("prefill", 1, 8)) is None


# --- refusals


def test_pairs_that_are_none(pair, exported, tmp_path, capsys) -> None:
    base, pruned = pair
    _, other, _ = exported("llama-mha")
    for arguments, code, words in (
        ((pruned, base), ExitCode.REFUSED, "swapped"),
        ((base, base), ExitCode.REFUSED, "same graph"),
        ((other, pruned), ExitCode.REFUSED, "another graph"),
        ((tmp_path / "none.onnx", pruned), ExitCode.BAD_INPUT, "no such ONNX file"),
        ((base, pruned, "--repeats", "6"), ExitCode.USAGE, "multiple of 8"),
        ((base, pruned, "--batch", "1,x"), ExitCode.USAGE, "'x'"),
        ((base, pruned, "--max-regression", "3%"), ExitCode.USAGE, "--baseline"),
        ((base, pruned, "--device", "cpu"), ExitCode.USAGE, "--backend torch"),
        ((base, pruned, "--graphs", base, pruned), ExitCode.USAGE, "engines"),
    ):
        assert bench(*arguments, "--quiet", "-o", tmp_path / "r.json") == code, arguments
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_graphs_of_no_decoder_are_refused(exported, tmp_path, capsys) -> None:
    import onnx
    from onnx import TensorProto, helper

    entry = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["y"])],
        "g",
        [entry],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "v.onnx"))
    assert bench(tmp_path / "v.onnx", tmp_path / "v.onnx") == ExitCode.REFUSED
    assert "only decoders" in capsys.readouterr().err


def test_backends_that_are_not_here(pair, monkeypatch) -> None:
    with pytest.raises(MissingPartError, match="onnxruntime-gpu"):
        open_backend("ort-cuda")
    import torch

    if torch.version.cuda is None:
        with pytest.raises(MissingPartError, match="CUDA"):
            open_backend("torch", device="cuda")
    with pytest.raises(InputError, match="there are ort-cpu"):
        open_backend("abacus")
    assert backend_for(*pair) == "ort-cpu"


def test_a_damaged_engine_is_named_even_without_a_gpu(tmp_path, capsys) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine could run engines")
    for name in ("base", "pruned"):
        record = engine_record().model_dump() | {"engine": f"{name}.engine", "bytes": 5, "build_seconds": 1.0}
        record |= {"n_network_layers": 1, "n_inputs": 1, "n_outputs": 1, "kind": "engine", "prepared": None}
        EngineArtifact.model_validate(record).save(tmp_path / f"{name}.engine.json")
        (tmp_path / f"{name}.engine").write_bytes(b"vtrt")
    assert backend_for(tmp_path / "base.engine", tmp_path / "pruned.engine") == "tensorrt-rtx"
    assert bench(tmp_path / "base.engine", tmp_path / "pruned.engine", "-o", tmp_path / "r.json") == ExitCode.BAD_INPUT
    error = capsys.readouterr().err
    assert "base.engine" in error
    assert "cut off" in error
    assert not (tmp_path / "r.json").exists()


# --- torch


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint and a plan for it."""
    folder = tmp_path_factory.mktemp("planned")
    row("llama-gqa").save(folder / "model")
    assert main(["score", str(folder / "model"), "-o", str(folder), "--quiet"]) == 0
    assert main(["plan", str(folder / "scores.json"), "--drop", "2", "-o", str(folder), "--quiet"]) == 0
    return folder / "model", folder / "plan.json"


def test_torch_takes_a_checkpoint_and_a_plan(planned, tmp_path) -> None:
    assert backend_for(*planned) == "torch"
    assert bench(*planned, "--device", "cpu", *QUICK, "-o", tmp_path / "r.json") == 0
    report = BenchReport.load(tmp_path / "r.json")
    plan = PrunePlan.load(planned[1])
    assert report.dropped == plan.drop
    assert report.pruned.kv_bytes_per_token == report.base.kv_bytes_per_token / 2
    assert report.pruned.work.kv_bytes_per_token == report.pruned.kv_bytes_per_token
    # q, k, v and o of two layers: 64 x 64, twice 64 x 32, 64 x 64.
    assert report.base.work.weight_bytes - report.pruned.work.weight_bytes == 4 * 2 * (2 * 64 * 64 + 2 * 64 * 32)


def test_torch_refuses_what_does_not_belong_together(planned, exported, tmp_path, capsys) -> None:
    other = row("llama-mha").save(tmp_path / "other")
    _, graph, _ = exported("llama-gqa")
    torch = ("--backend", "torch", "--device", "cpu", "--quiet")
    for arguments, code, words in (
        ((other, planned[1]), ExitCode.REFUSED, "was made from"),
        ((planned[1], planned[0]), ExitCode.REFUSED, "swapped"),
        ((graph, planned[1]), ExitCode.BAD_INPUT, "a checkpoint"),
        ((planned[0], tmp_path / "no.json"), ExitCode.BAD_INPUT, "no such plan"),
    ):
        assert bench(*arguments, *torch) == code
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-gqa", "mistral-gqa"])
@pytest.mark.parametrize("layers", [(0,), (1, 3), (0, 1, 2, 3)], ids=str)
def test_removed_modules_compute_what_zeroed_ones_do(name: str, layers: tuple[int, ...]) -> None:
    import torch

    from benchmarks.native import native_model
    from gatenorm_export.architectures import adapter_for
    from gatenorm_export.benching.torch_model import TorchModel
    from gatenorm_export.benching.torch_surgery import remove_attention_modules
    from gatenorm_export.framework import zeroed_attention

    model = row(name).make()
    architecture = type(model).__name__
    tokens = torch.arange(3, 14)[None]
    spec = SimpleNamespace(architecture=architecture, name=name)
    with torch.inference_mode(), zeroed_attention(model, spec, layers):
        wanted = model(input_ids=tokens).logits
    whole = kv_bytes_of(row(name).make())
    cut = row(name).make()
    calls = []
    cut.model.layers[layers[0]].self_attn.register_forward_hook(lambda *_: calls.append(1))
    assert remove_attention_modules(cut, adapter_for(architecture).tower(), layers) == ()
    calls.clear()
    with torch.inference_mode():
        torch.testing.assert_close(cut(input_ids=tokens).logits, wanted)
    assert not calls
    assert kv_bytes_of(cut) == whole * (4 - len(layers)) // 4
    timed = TorchModel(cut, "cpu", WallClock())
    timed.prepare(tokens.numpy(), 2)
    timed.prefill()
    before = timed.kv_bytes()
    timed.decode()
    timed.decode()
    timed.rewind()
    assert timed.kv_bytes() == before
    if len(layers) < 4:
        native = native_model(row(name).make(), architecture, layers)
        assert native.config.num_hidden_layers == len(native.model.layers) == 4 - len(layers)
        with torch.inference_mode():
            torch.testing.assert_close(native(input_ids=tokens).logits, wanted)


@pytest.mark.parametrize(
    ("family", "extra", "n_notes"),
    [
        ("GPTNeoX", {}, 0),
        ("Phi", {}, 1),
        ("Olmo2", {"pad_token_id": 1}, 1),
        ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8, "attn_implementation": "eager"}, 1),
    ],
)
def test_blocks_of_other_families_keep_their_code_where_no_shorter_one_computes_the_same(
    family: str, extra: dict[str, object], n_notes: int
) -> None:
    import torch
    import transformers

    from gatenorm_export.architectures import adapter_for
    from gatenorm_export.benching.torch_surgery import remove_attention_modules
    from gatenorm_export.framework import zeroed_attention

    config = getattr(transformers, f"{family}Config")(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=64, vocab_size=64, **extra
    )
    torch.manual_seed(0)
    architecture = f"{family}ForCausalLM"
    model = getattr(transformers, architecture)(config).eval()
    tokens = torch.arange(3, 9)[None]
    with torch.inference_mode(), zeroed_attention(model, SimpleNamespace(architecture=architecture), (0,)):
        wanted = model(input_ids=tokens).logits
    notes = remove_attention_modules(model, adapter_for(architecture).tower(), (0,))
    assert len(notes) == n_notes
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=tokens).logits, wanted)
    with pytest.raises(RefusedError, match="layer 7 does not exist"):
        remove_attention_modules(model, adapter_for(architecture).tower(), (7,))


def kv_bytes_of(model: object) -> int:
    from gatenorm_export.benching.torch_model import TorchModel

    timed = TorchModel(model, "cpu", WallClock())
    timed.prepare(np.arange(3, 14)[None], 0)
    timed.prefill()
    return timed.kv_bytes()


# --- engines, with an engine that reads and writes memory by address as TensorRT does

HEADS, SIZE, VOCABULARY = 2, 3, 5


class FakeContext:
    """present = past and one new row a token, whose value is how many rows were read; logits are not written."""

    def __init__(self, log: list[tuple[str, int, int]]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.log = log

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, step = self.shapes["input_ids"]
        if name == "present.0.key":
            return (batch, HEADS, self.shapes["past.0.key"][2] + step, SIZE)
        return (batch, step, VOCABULARY)

    def execute_async_v3(self, stream: int) -> bool:
        batch, step = self.shapes["input_ids"]
        past = self.shapes["past.0.key"][2]
        assert self.shapes["attention_mask"] == (batch, past + step)
        assert self.profile == (0 if past == 0 else 1)
        source, target = self.addresses["past.0.key"], self.addresses["present.0.key"]
        assert source != target
        self.log.append(("run", source, target))
        read = array_at(source, (batch, HEADS, past, SIZE)).copy()
        new = np.full((batch, HEADS, step, SIZE), past, np.float32)
        array_at(target, (batch, HEADS, past + step, SIZE))[...] = np.concatenate([read, new], axis=2)
        return True


def array_at(address: int, shape: tuple[int, ...]) -> np.ndarray:
    n = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * n).from_address(address)).reshape(shape) if n else np.empty(shape)


class FakeEngine:
    num_io_tensors = 5
    names = ("input_ids", "attention_mask", "past.0.key", "logits", "present.0.key")

    def __init__(self, log: list[tuple[str, int, int]]) -> None:
        self.log = log

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self.log)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="OUTPUT" if name in {"logits", "present.0.key"} else "INPUT")

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="INT64" if name in {"input_ids", "attention_mask"} else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name.endswith(".key"):
            return (-1, HEADS, -1, SIZE)
        return (-1, -1, VOCABULARY) if name == "logits" else (-1, -1)


def engine_record(batch: int = 2, prompt: int = 16, context: int = 40) -> EngineArtifact:
    def profile(name: str, step: int, past: tuple[int, int]) -> Profile:
        def bound(entry: str, low: tuple[int, ...], high: tuple[int, ...]) -> ProfileBounds:
            return ProfileBounds(input=entry, min=low, opt=high, max=high)

        return Profile(
            name=name,
            bounds=(
                bound("input_ids", (1, 1), (batch, step)),
                bound("attention_mask", (1, 1 + past[0]), (batch, step + past[1])),
                bound("past.0.key", (1, HEADS, past[0], SIZE), (batch, HEADS, past[1], SIZE)),
            ),
        )

    return EngineArtifact.model_construct(
        engine="e.engine",
        profiles=(profile("prefill", prompt, (0, 0)), profile("decode", 1, (1, context - 1))),
        parent_sha256="p" * 64,
        sha256="s" * 64,
        precision="fp32",
        flavour="tensorrt-rtx",
        flavour_version="1.7",
        built_on="a machine",
        capabilities=(),
        prepared=None,
        n_layers=None,
        dropped=None,
        ancestors=None,
        recovered_from=None,
        model_digest=None,
    )


def test_an_engine_passes_its_cache_from_buffer_to_buffer() -> None:
    log: list[tuple[str, int, int]] = []
    stream = SimpleNamespace(cuda_stream=0)
    model = EngineModel(FakeEngine(log), engine_record(), stream, WallClock(), where="cpu")
    model.prepare(np.arange(8).reshape(2, 4), 5)
    model.prefill()
    assert model.kv_bytes() == 2 * HEADS * 4 * SIZE * 4
    for _ in range(4):
        model.decode()
    (_, _, home), *steps = log
    assert steps[0][1] == home
    for (_, _, written), (_, read, _) in itertools.pairwise(steps):
        assert read == written
    assert home not in [target for _, _, target in steps]
    last = array_at(steps[-1][2], (2, HEADS, 8, SIZE))
    np.testing.assert_array_equal(last[0, 0, :, 0], [0, 0, 0, 0, 4, 5, 6, 7])
    model.rewind()
    model.decode()
    assert log[-1][1] == home
    np.testing.assert_array_equal(array_at(log[-1][2], (2, HEADS, 5, SIZE))[0, 0, :, 0], [0, 0, 0, 0, 4])
    model.close()


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (Point("prefill", 3, 8), "--batch 3"),
        (Point("prefill", 1, 17), "--prompt 17"),
        (Point("decode", 1, 16), None),
    ],
    ids=str,
)
def test_an_engine_names_the_bound_that_a_point_passes(point: Point, words: str | None) -> None:
    model = EngineModel(FakeEngine([]), engine_record(), SimpleNamespace(cuda_stream=0), WallClock(), where="cpu")
    refused = model.refuses(point)
    assert refused is None if words is None else words in refused
    short = EngineModel(
        FakeEngine([]), engine_record(context=20), SimpleNamespace(cuda_stream=0), WallClock(), where="cpu"
    )
    assert "--context 32" in (short.refuses(Point("decode", 1, 16)) or "")


def test_engines_are_held_against_each_other_and_their_graphs(pair, tmp_path, monkeypatch) -> None:
    from gatenorm_export.artifacts import sha256_of
    from gatenorm_export.benching import engine_files
    from gatenorm_export.benching.graph_work import graph_work

    base_sha, pruned_sha = (sha256_of(graph) for graph in pair)
    records = {
        "base": engine_record().model_copy(
            update={"engine": "base", "parent_sha256": base_sha, "parent_path": str(pair[0]), "ancestors": ()}
        ),
        "pruned": engine_record().model_copy(
            update={
                "engine": "pruned",
                "parent_sha256": pruned_sha,
                "parent_path": str(tmp_path / "moved.onnx"),
                "ancestors": (base_sha,),
                "n_layers": 4,
                "dropped": DROP,
                "precision": "fp16",
            }
        ),
    }
    records["base"] = records["base"].model_copy(update={"precision": "fp16"})
    # Everything that opening checks is tested with the engines themselves.
    monkeypatch.setattr(engine_files, "open_engine", lambda path: records[path.name])
    base = engine_files.read_engine(Path("base"), "tensorrt-rtx")
    lost = engine_files.read_engine(Path("pruned"), "tensorrt-rtx")
    found = engine_files.read_engine(Path("pruned"), "tensorrt-rtx", pair[1])
    assert "--graphs" in str(lost.work)
    assert found.work.weight_bytes * 2 == graph_work(pair[1]).weight_bytes
    assert (found.work.dtype, found.work.score_bytes_per_pair) == ("float16", 0)
    assert base.kv_bytes_per_token == HEADS * SIZE * 2
    lineage = engine_files.engine_lineage(base, found)
    assert (lineage.n_layers, lineage.dropped, lineage.plan_sha256) == (4, DROP, "a" * 64)
    with pytest.raises(RefusedError, match="swapped"):
        engine_files.engine_lineage(found, base)
    with pytest.raises(RefusedError, match="same graph"):
        engine_files.engine_lineage(base, base)
    with pytest.raises(InputError, match="is not the graph"):
        engine_files.read_engine(Path("pruned"), "tensorrt-rtx", pair[0])
    with pytest.raises(RefusedError, match="--backend tensorrt-rtx"):
        engine_files.read_engine(Path("base"), "tensorrt")
    with pytest.raises(InputError, match="is no engine"):
        engine_files.read_engine(pair[0], "tensorrt-rtx")
