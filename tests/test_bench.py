"""bench on graphs: what it reports, what a step hands to the next, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from bench_cases import DROP, QUICK, bench, graph_pair

from gatenorm_export.benching import backend_for, bench_markdown, bench_tables, open_backend
from gatenorm_export.benching.protocol import Point
from gatenorm_export.errors import ExitCode, InputError, MissingPartError
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records.bench import BenchReport


@pytest.fixture(scope="module")
def pair(exported, tmp_path_factory) -> tuple[Path, Path]:
    """A base and a pruned graph."""
    return graph_pair(exported("llama-gqa")[1], tmp_path_factory.mktemp("pruned"))


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


def test_a_control_that_is_not_decided_has_an_exit_code_and_advice(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    native = onnx.load(pair[1])
    native.producer_name = "another exporter"
    onnx.save(native, tmp_path / "native.onnx")
    monkeypatch.setattr("gatenorm_export.benching.control.speedup_of", lambda *_, order: (1.0, 0.9, 1.1))
    assert bench(*pair, *QUICK, "--control", tmp_path / "native.onnx") == ExitCode.UNDECIDED == 15
    said = " ".join(capsys.readouterr().out.split())
    assert "is not decided: native over pruned time 1.000 (0.900 to 1.100); measure more, with --repeats" in said


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
        ((base, pruned, "--control", pruned), ExitCode.REFUSED, "is the pruned model itself"),
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


def test_a_batch_that_memory_cannot_hold_is_refused_before_it_is_tried(pair, tmp_path, capsys) -> None:
    assert bench(*pair, "--batch", 9_000_000, "--sequence", 40, "--quiet") == 5
    assert re.search(
        r"prefill, 40 tokens, batch 9000000: takes about [\d,.]+ GB of memory, and", capsys.readouterr().err
    )


def test_what_a_graph_takes_is_about_what_it_was_measured_to_take(pair) -> None:
    from gatenorm_export.benching.ort_cpu import OrtCpu
    from gatenorm_export.benching.protocol import Point
    from gatenorm_export.benching.room import memory_needed
    from gatenorm_export.benching.timing import load

    backend = OrtCpu()
    side = backend.open(*pair).base
    point = Point("prefill", 256, 40)
    model, loaded = load(backend, side, [point])
    model.close()
    assert loaded.peak_memory_bytes is not None
    assert 0.5 < memory_needed([side], point) / loaded.peak_memory_bytes < 1.3
