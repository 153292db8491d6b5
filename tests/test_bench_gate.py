"""The regression gate: what fails, what is named, what is not compared at all."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from bench_cases import DEVICE, QUICK, bench, bench_report, bench_row, faster, graph_pair, timing

from gatenorm_export.benching import gate_tables, hold_to_baseline, parse_regression, read_baseline
from gatenorm_export.cli.bench_results import exit_code
from gatenorm_export.errors import ExitCode, InputError, RefusedError
from gatenorm_export.records.bench import BenchReport, Clocks, GateReport


def held(now: BenchReport, then: BenchReport, limit: float = 0.03, *, across: bool = False) -> GateReport:
    return hold_to_baseline(now, then, "then.json", limit, across_devices=across)


def shown(gate: GateReport) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    for item in gate_tables(gate):
        console.print(item)
    return console.export_text()


def test_the_same_figures_hold() -> None:
    report = bench_report([bench_row("prefill"), bench_row("decode")])
    gate = held(report, report)
    assert gate.passed
    assert gate.rows[0].ratio_change == 0
    assert GateReport.model_validate_json(gate.to_json()) == gate


def test_a_slower_pruned_model_fails_by_both_measures() -> None:
    then = bench_report([bench_row("decode", pruned=9.0), bench_row("prefill", pruned=9.0)])
    now = bench_report([bench_row("decode", pruned=9.5), bench_row("prefill", pruned=9.05)])
    gate = held(now, then)
    assert not gate.passed
    moved = {row.name: row for row in gate.rows}
    decode = moved["decode, 64 tokens, batch 1"]
    assert decode.slower == ("ratio", "p50")
    assert decode.ratio_change == pytest.approx(9.5 / 9 - 1)
    assert decode.p50_change == pytest.approx(9.5 / 9 - 1)
    assert decode.ratio_low < decode.ratio_change < decode.ratio_high
    assert moved["prefill, 64 tokens, batch 1"].slower == ()
    text = shown(gate)
    assert "decode, 64 tokens, batch 1" in text
    assert "SLOWER by ratio and p50" in text
    assert "prefill, 64" not in text
    assert "REGRESSION" in gate.sentence


def test_a_slower_machine_fails_by_milliseconds_alone() -> None:
    then, now = bench_report([bench_row()]), bench_report([bench_row(base=11.0, pruned=9.9)])
    assert held(now, then).rows[0].slower == ("p50",)


def test_a_faster_base_fails_by_the_ratio_alone() -> None:
    then, now = bench_report([bench_row()]), bench_report([bench_row(base=9.0)])
    assert held(now, then).rows[0].slower == ("ratio",)


@pytest.mark.parametrize(
    ("pruned", "spread", "passed"),
    [
        # A loss of 6.7 % is one, or drowns in noise.
        (9.6, 0.01, False),
        (9.6, 0.2, None),
        # Where a loss of 3 % could not have been seen, none is not known either, unless there is a gain beyond doubt.
        (9.0, 0.01, True),
        (9.0, 0.2, None),
        (5.0, 0.2, True),
        # Beyond the limit at one end, but a loss of the limit would have been seen.
        (9.2, 0.012, True),
    ],
)
def test_noise_neither_fails_nor_passes(pruned: float, spread: float, passed: bool | None) -> None:
    then = bench_report([bench_row(spread=spread)])
    now = bench_report([bench_row(pruned=pruned, spread=spread)])
    gate = held(now, then)
    assert gate.passed is passed
    assert gate.rows[0].ratio_high > 0.03 or pruned in {9.0, 5.0}
    if passed is None:
        assert gate.rows[0].undecided == ("ratio", "p50")
        assert "not decided by ratio and p50" in shown(gate)
        assert gate.sentence.startswith("not decided: in 1 of 1 rows the interval is too wide to see a loss of 3.0%")
        assert "--repeats" in gate.sentence
    else:
        assert gate.rows[0].undecided == ()


def test_a_regression_is_one_beside_rows_that_are_not_decided() -> None:
    then = bench_report([bench_row("decode"), bench_row("prefill", spread=0.3)])
    gate = held(bench_report([bench_row("decode", pruned=9.9), bench_row("prefill", spread=0.3)]), then)
    assert gate.passed is False
    assert gate.sentence.startswith("REGRESSION: 1 of 2 rows are more than 3.0% slower")
    assert "in 1 of 2 rows the interval is too wide" in gate.sentence


@pytest.mark.parametrize(
    ("gates", "controls", "code"),
    [
        ((), (), ExitCode.OK),
        ((True,), (True,), ExitCode.OK),
        ((True, None), (), ExitCode.UNDECIDED),
        ((), (None,), ExitCode.UNDECIDED),
        ((None, False), (), ExitCode.REGRESSION),
        ((None,), (False,), ExitCode.THRESHOLD),
        ((False,), (False,), ExitCode.REGRESSION),
    ],
)
def test_what_is_not_decided_is_no_success(gates: tuple, controls: tuple, code: ExitCode) -> None:
    assert exit_code(gates, controls) == code


def test_the_limit_is_what_was_asked_for() -> None:
    then, now = bench_report([bench_row()]), bench_report([bench_row(pruned=9.45)])
    assert held(now, then, 0.06).passed
    assert not held(now, then, 0.04).passed


def test_faster_rows_are_shown_and_do_not_fail() -> None:
    gate = held(bench_report([bench_row(pruned=8.0)]), bench_report([bench_row()]))
    assert gate.passed
    assert gate.rows[0].faster
    assert "faster" in shown(gate)


def test_rows_that_are_gone_are_named_and_fail() -> None:
    then = bench_report([bench_row(sequence=64), bench_row(sequence=512)])
    gate = held(bench_report([bench_row(sequence=64), bench_row(sequence=128)]), then)
    assert not gate.passed
    assert gate.missing == ("decode, 512 tokens, batch 1",)
    assert gate.added == ("decode, 128 tokens, batch 1",)
    assert "MISSING: decode, 512 tokens, batch 1" in shown(gate)
    with pytest.raises(RefusedError, match="no row in common"):
        held(bench_report([bench_row(sequence=7)]), then)


@pytest.mark.parametrize(
    "change",
    [
        {"device": "another GPU"},
        {"runtime": "fake 2"},
        {"backend": "other"},
        {"driver": "600.1"},
        {"threads": 2},
        {"timer": "wall clock"},
    ],
    ids=str,
)
def test_other_machines_are_refused_unless_told(change: dict[str, object]) -> None:
    then = bench_report([bench_row()], device=DEVICE.model_copy(update=change))
    now = bench_report([bench_row(base=20.0, pruned=18.0)])
    with pytest.raises(RefusedError, match=str(next(iter(change.values())))):
        held(now, then)
    gate = held(now, then, across=True)
    # Twice the milliseconds at the same ratio: across devices that is no regression.
    assert gate.passed
    assert gate.rows[0].p50_change is None
    assert "by ratios alone" in gate.notes[0]
    assert not held(bench_report([bench_row(base=20.0, pruned=19.5)]), then, across=True).passed


def test_other_models_are_refused_and_other_plans_noted() -> None:
    then = bench_report([bench_row()])
    with pytest.raises(RefusedError, match="4 attention layers"):
        held(bench_report([bench_row()], n_layers=5), then)
    gate = held(bench_report([bench_row()], dropped=(2,), plan_sha256="b"), then)
    assert len(gate.notes) == 2


@pytest.mark.parametrize(("text", "share"), [("3%", 0.03), (" 2.5 % ", 0.025), ("0%", 0.0), ("100%", 1.0)])
def test_limits(text: str, share: float) -> None:
    assert parse_regression(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["3", "0.03", "-3%", "101%", "3%%", "three%", "", "%", "nan%", "1e1%"])
def test_malformed_limits(text: str) -> None:
    with pytest.raises(InputError, match="such as 3%"):
        parse_regression(text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"bench"', '"plan"', 1),
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: text.replace('"speedup": ', '"speedup": -', 1),
        lambda text: json.dumps(json.loads(text) | {"rows": []}),
    ],
)
def test_damaged_baselines(damage, tmp_path: Path) -> None:
    file = tmp_path / "then.json"
    bench_report([bench_row()]).save(file)
    assert read_baseline(file).rows
    file.write_text(damage(file.read_text()))
    with pytest.raises(InputError, match=r"then\.json"):
        read_baseline(file)
    with pytest.raises(InputError, match="no such baseline"):
        read_baseline(tmp_path / "none.json")


@pytest.fixture(scope="module")
def place(exported, tmp_path_factory) -> Path:
    """A folder with a pruned graph; ``now.json``, which was measured on it; and baselines, fast and slow."""
    folder = tmp_path_factory.mktemp("gate")
    base, pruned = graph_pair(exported("llama-gqa")[1], folder / "pruned")
    assert bench(base, pruned, *QUICK, "-o", folder / "now.json") == 0
    report = BenchReport.load(folder / "now.json")
    faster(report, 1e6).save(folder / "fast.json")
    faster(report, 1e-6).save(folder / "slow.json")
    return folder


@pytest.fixture
def again(place: Path, exported, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The arguments of that bench, whose figures are then those of ``now.json``."""
    report = BenchReport.load(place / "now.json")
    monkeypatch.setattr("gatenorm_export.benching.run_bench", lambda *_, **__: report)
    return [exported("llama-gqa")[1], place / "pruned", *QUICK]


def test_the_command_fails_with_12_and_still_writes_its_results(place: Path, again, tmp_path: Path, capsys) -> None:
    gate = ["--baseline", place / "fast.json", "--max-regression", "3%"]
    assert bench(*again, *gate, "-o", tmp_path / "r.json", "--json") == ExitCode.REGRESSION == 12
    assert json.loads(capsys.readouterr().out)["gate"]["passed"] is False
    assert BenchReport.load(tmp_path / "r.json").rows
    assert bench(*again, "--baseline", place / "slow.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["gate"]["passed"] is True
    assert bench(*again, "--baseline", place / "fast.json", "--max-regression", "3") == ExitCode.USAGE


def test_a_gate_that_is_not_decided_has_15(place: Path, again, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    report = BenchReport.load(place / "now.json")
    wide = [
        row.model_copy(update={"speedup_low": row.speedup / 2, "speedup_high": row.speedup * 2}) for row in report.rows
    ]
    monkeypatch.setattr(
        "gatenorm_export.benching.run_bench", lambda *_, **__: report.model_copy(update={"rows": tuple(wide)})
    )
    assert bench(*again, "--baseline", place / "now.json") == ExitCode.UNDECIDED == 15
    assert "not decided: in 2 of 2 rows" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["fast.json", "folder"])
def test_a_gate_does_not_overwrite_its_baseline(name: str, place: Path, again, capsys) -> None:
    """One that failed would pass the second time, against its own results."""
    (place / "folder").mkdir(exist_ok=True)
    shutil.copy(place / "fast.json", place / "folder" / "bench.json")
    assert bench(*again, "--baseline", place / name, "-o", place / name) == ExitCode.BAD_INPUT
    assert "would overwrite the baseline" in capsys.readouterr().err


def test_what_has_nothing_to_be_held_against_is_not_measured(
    place: Path, again, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("gatenorm_export.benching.run_bench", lambda *_, **__: pytest.fail("was measured"))
    assert bench(*again, "--sequence", "9", "--baseline", place / "now.json") == ExitCode.REFUSED
    assert "has no row in common" in capsys.readouterr().err
    report = BenchReport.load(place / "now.json")
    other = report.model_copy(update={"device": report.device.model_copy(update={"device": "a toaster"})})
    other.save(tmp_path / "other.json")
    held = ["--baseline", tmp_path / "other.json", "-o", tmp_path / "x.json"]
    assert bench(*again, *held) == ExitCode.REFUSED
    assert "a toaster" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_milliseconds_of_a_busy_machine_are_not_judged() -> None:
    quiet = bench_report([bench_row()])
    assert quiet.device.driver is None
    slower = [row.model_copy(update={"pruned": timing(2 * row.pruned.p50_ms)}) for row in quiet.rows]
    now = quiet.model_copy(update={"rows": tuple(slower)})
    assert not held(now, quiet).passed
    for loaded in (now, quiet):
        busy = loaded.model_copy(update={"clocks_before": Clocks(load_1min=float(loaded.device.threads))})
        found = held(busy, quiet) if loaded is now else held(now, busy)
        assert found.passed
        assert any("was not idle" in note for note in found.notes)
