"""The regression gate: what fails, what is named, what is not compared at all."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from bench_cases import DEVICE, bench_report, bench_row, faster, timing

from gatenorm_export.benching import gate_tables, hold_to_baseline, parse_regression, read_baseline
from gatenorm_export.cli.bench_results import exit_code
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, InputError, RefusedError
from gatenorm_export.pruning import prune_graph
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
        assert gate.sentence.startswith("not decided: of 1 of 1 rows the intervals are too wide to see a loss of 3.0%")
        assert "--repeats" in gate.sentence
    else:
        assert gate.rows[0].undecided == ()


def test_a_regression_is_one_beside_rows_that_are_not_decided() -> None:
    then = bench_report([bench_row("decode"), bench_row("prefill", spread=0.3)])
    gate = held(bench_report([bench_row("decode", pruned=9.9), bench_row("prefill", spread=0.3)]), then)
    assert gate.passed is False
    assert gate.sentence.startswith("REGRESSION: 1 of 2 rows are more than 3.0% slower")
    assert "of 1 of 2 rows the intervals are too wide" in gate.sentence


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


def test_the_command_fails_with_12_and_still_writes_its_results(exported, tmp_path, capsys) -> None:
    _, base, _ = exported("llama-gqa")
    prune_graph(base, tmp_path / "pruned", layers=(1,))
    call = ["bench", str(base), str(tmp_path / "pruned"), "--sequence", "8", "--repeats", "8", "--quiet"]
    assert main([*call, "-o", str(tmp_path / "now.json")]) == 0
    report = BenchReport.load(tmp_path / "now.json")
    faster(report, 1e6).save(tmp_path / "fast.json")
    faster(report, 1e-6).save(tmp_path / "slow.json")
    capsys.readouterr()
    gate = [
        "--baseline",
        str(tmp_path / "fast.json"),
        "--max-regression",
        "3%",
        "-o",
        str(tmp_path / "r.json"),
        "--json",
    ]
    assert main([*call, *gate]) == ExitCode.REGRESSION == 12
    printed = json.loads(capsys.readouterr().out)
    assert printed["gate"]["passed"] is False
    assert BenchReport.load(tmp_path / "r.json").rows
    # A gate that failed would pass the second time, against its own results.
    for out in ("fast.json", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "fast.json", tmp_path / "folder" / "bench.json")
        held = [*call, "--baseline", str(tmp_path / out), "-o", str(tmp_path / out)]
        assert main(held) == ExitCode.BAD_INPUT
        assert "would overwrite the baseline" in capsys.readouterr().err
    assert main([*call, "--baseline", str(tmp_path / "slow.json"), "--json"]) == 0
    # What has nothing to be held against is told before it is measured.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatenorm_export.benching.run_bench", lambda *_, **__: pytest.fail("was measured"))
        capsys.readouterr()
        held = [
            "bench",
            *call[1:3],
            "--sequence",
            "9",
            "--repeats",
            "8",
            "-q",
            "--baseline",
            str(tmp_path / "now.json"),
        ]
        assert main(held) == ExitCode.REFUSED
        assert "has no row in common" in capsys.readouterr().err
    other = report.model_copy(update={"device": report.device.model_copy(update={"device": "a toaster"})})
    other.save(tmp_path / "other.json")
    capsys.readouterr()
    assert main([*call, "--baseline", str(tmp_path / "other.json"), "-o", str(tmp_path / "x.json")]) == ExitCode.REFUSED
    assert "a toaster" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
    assert main([*call, "--baseline", str(tmp_path / "fast.json"), "--max-regression", "3"]) == ExitCode.USAGE


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
