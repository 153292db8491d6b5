"""The one command for a GPU machine, at a shape that a CPU runs in seconds; and the README's table of its results."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from benchmarks import control, gpu
from benchmarks.bench_chart import bench_svg
from benchmarks.bench_tables import Cell, goals_of, markdown
from benchmarks.gpu_shapes import SHAPES, ShapeModels, fill_with_random
from gatenorm_export.benching import BenchRequest
from gatenorm_export.progress import Quiet
from gatenorm_export.records.bench import BenchReport

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of the tiny shape on the CPU."""
    out = tmp_path_factory.mktemp("out")
    arguments = ["--shape", "tiny", "--device", "cpu", "--repeats", "8", "--sequence", "8", "24", "--out", str(out)]
    assert gpu.main(arguments) == 0
    return out


def test_every_backend_and_every_number_of_layers(measured: Path) -> None:
    cells, result = gpu.load_results(measured / "bench-tiny-cpu.json")
    assert [(cell.backend, cell.drop) for cell in cells] == [(b, d) for b in ("ort-cpu", "torch") for d in (0, 1, 2)]
    for cell in cells:
        report = cell.report
        assert report is not None, cell.reason
        assert len(report.rows) == 4
        assert len(report.dropped) == cell.drop
        before, after = report.base.kv_bytes_per_token, report.pruned.kv_bytes_per_token
        assert before is not None
        assert after is not None
        assert after * 5 == before * (5 - len(report.dropped))
        for row in report.rows:
            assert row.roofline is not None
            assert (row.roofline.speedup > 1) == (cell.drop > 0)
    assert result["command"].startswith("python -m benchmarks.gpu --shape tiny")
    held = {goal["name"]: goal["held"] for goal in result["goals"]}
    assert held["ort-cpu: bytes of KV cache are (L - N) / L"] is True
    assert held["torch: bytes of KV cache are (L - N) / L"] is True
    assert held["torch: 1.30 times as fast without 16 of 40"] is None


def test_the_pictures_show_every_row(measured: Path) -> None:
    for backend in ("ort-cpu", "torch"):
        root = ET.parse(measured / f"bench-tiny-cpu-{backend}.svg").getroot()
        points = [(g.get("data-row"), g.get("data-drop")) for g in root.iter(f"{SVG}g") if g.get("data-row")]
        assert len(points) == len(set(points)) == 12
        width = float(root.get("width", "0"))
        for text in root.iter(f"{SVG}text"):
            assert 0 <= float(text.get("x", "0")) <= width


def test_a_goal_that_is_missed_is_missed(measured: Path) -> None:
    cells, _ = gpu.load_results(measured / "bench-tiny-cpu.json")
    report = next(cell.report for cell in cells if cell.drop == 2)
    assert report is not None

    def goals(changed: BenchReport) -> dict[str, bool | None]:
        return {goal.name.split(": ")[1]: goal.held for goal in goals_of([Cell("x", 16, changed, None)])}

    full = report.model_copy(update={"n_layers": 40, "dropped": tuple(range(24, 40))})
    for low, high, held in ((1.31, 1.4, True), (1.2, 1.29, False), (1.2, 1.4, None)):
        fast = tuple(entry.model_copy(update={"speedup": 1.31, "low": low, "high": high}) for entry in full.speedups)
        found = goals(full.model_copy(update={"speedups": fast}))
        assert found["1.30 times as fast without 16 of 40"] is held
    # 24 of 40 are the 3 of 5 that were measured; 23 of 40 are not.
    for first, held in ((24, True), (23, False)):
        other = full.model_copy(update={"dropped": tuple(range(first, 40))})
        assert goals(other)["bytes of KV cache are (L - N) / L"] is held
    for low, certain, held in ((0.96, False, True), (0.94, False, None), (0.9, True, False)):
        rows = tuple(
            row.model_copy(
                update={
                    "speedup_low": low * row.roofline.speedup,
                    "roofline": row.roofline.model_copy(update={"certain": certain}),
                }
            )
            for row in report.rows
            if row.roofline is not None
        )
        assert goals(report.model_copy(update={"rows": rows}))["0.95 of the predicted speed-up in every row"] is held


def test_what_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No GPU is a row with a reason; nothing but such rows is a failure, and costs no earlier results."""
    arguments = ["--shape", "tiny", "--device", "cpu", "--backend", "ort-cuda", "--drop", "1", "--out", str(tmp_path)]
    assert gpu.main(arguments) == 1
    printed = capsys.readouterr()
    assert "ort-cuda: not measured: --backend ort-cuda needs" in printed.out
    assert "nothing could be measured" in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("drop", ["6", "-1"])
def test_layers_that_the_shape_does_not_have_are_refused(drop: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--shape", "tiny", "--device", "cpu", "--drop", "1", drop])
    assert ended.value.code == 2
    assert f"--drop {drop}: tiny has 5 attention sublayers; give 0 to 5" in capsys.readouterr().err


def test_the_table_has_the_measured_figures(measured: Path) -> None:
    cells, _ = gpu.load_results(measured / "bench-tiny-cpu.json")
    text = markdown(cells)
    row = cells[1].report.rows[0]
    assert f"{row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f}), {row.roofline.speedup:.2f}" in text
    assert "80.0%" in text
    assert markdown([Cell("x", None, None, "no GPU")]) == "- x: not measured: no GPU\n"


def test_weights_on_disk_are_finite_numbers_of_their_scale(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(2 * 1000))
    fill_with_random(path)
    values = np.frombuffer(path.read_bytes(), np.float16).astype(np.float64)
    assert len(values) == 1000
    assert values.std() == pytest.approx(0.02, rel=0.1)


def test_the_full_shape_is_llama_13b(tmp_path: Path) -> None:
    """Counted without storage: 40 blocks, 13 billion parameters; 16 of 40 cut the cache to 24 of 40."""
    models = ShapeModels(SHAPES["llama-13b"], tmp_path, Quiet())
    source = models.torch_source("cpu", "fp16")
    assert sum(parameter.numel() for parameter in source.counted.parameters()) == 13_015_864_320
    assert models.n_layers == 40
    assert models.layers(4) == (36, 37, 38, 39)
    from gatenorm_export.benching.torch_model import torch_work

    base, cut = (torch_work(source.counted, source.modules, models.layers(drop), "float16") for drop in (0, 16))
    assert base.weight_bytes - cut.weight_bytes == 2 * 16 * 4 * 5120 * 5120
    assert cut.kv_bytes_per_token * 40 == base.kv_bytes_per_token * 24


def test_a_pruned_graph_is_the_native_one(exported, tmp_path: Path) -> None:
    """Structure and numbers; the time is for a quiet machine."""
    spec, _, _ = exported("llama-gqa")
    request = BenchRequest(sequences=(8,), repeats=8)
    result = control.measure(spec.path, 2, request, tmp_path, progress=Quiet())
    assert result["control"]["differences"] == ()
    assert result["logit_error_of_range"] <= result["logit_tolerance_of_range"]
    assert len(result["control"]["rows"]) == 2
    assert result["nodes"]["pruned"] <= result["nodes"]["native"] * 1.02


def test_the_bench_table_in_the_readme_is_the_measured_one() -> None:
    results = ROOT / "benchmarks" / "results" / "bench-smollm2-cpu.json"
    readme = (ROOT / "README.md").read_text()
    if not results.is_file():
        pytest.skip("the suite's results are not committed yet")
    cells, _ = gpu.load_results(results)
    section = re.search(r"<!-- bench -->\n(.*?)<!-- /bench -->", readme, re.DOTALL)
    assert section is not None
    assert markdown(cells).strip() in section[1]


def test_committed_results_can_be_read() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("bench-*.json"):
        cells, result = gpu.load_results(path)
        assert json.loads(path.read_text())["kind"] == "bench-suite"
        assert [goal.to_object() for goal in goals_of(cells)] == result["goals"]
        for backend in {cell.backend for cell in cells if cell.report is not None}:
            svg = path.with_name(f"{path.stem}-{backend}.svg")
            found = [cell for cell in cells if cell.backend == backend and cell.report is not None]
            assert svg.read_text() == bench_svg(found, f"{result['shape']}, {backend}")
