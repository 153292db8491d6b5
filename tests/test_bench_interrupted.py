"""A bench that is interrupted goes on with the points that are missing, and only where the same is asked for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_cases import FakeBackend

from gatenorm_export.benching import BenchRequest, run_bench, timing
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records.bench import BenchReport, Probe

REQUEST = BenchRequest(sequences=(8, 16), repeats=16)


class CountingBackend(FakeBackend):
    """Probes are written down too."""

    def probe(self, like: object) -> Probe:
        self.log.append("probe")
        return Probe(bytes_per_s=1e3, flops_per_s=1e6, dtype="float32", how="by decree")

    @property
    def timed(self) -> list[str]:
        """What was called, loading and freeing left out."""
        return [line for line in self.log if "prefill" in line or "decode" in line]


def interrupted(backend: FakeBackend, after: int, kept: Path, request: BenchRequest = REQUEST) -> None:
    """Run until ``after`` calls of models were made."""
    made = 0

    def fails(what: str, calls: int) -> None:
        nonlocal made
        made += 1
        if made > after:
            raise KeyboardInterrupt

    backend.fails = fails
    with pytest.raises(KeyboardInterrupt):
        run_bench(backend, backend.pair(), request, kept_at=kept)


def n_timings(kept: Path) -> int:
    return sum(" at loading " in line for line in kept.read_text().splitlines())


def without_time(report: BenchReport) -> dict[str, object]:
    """What two measurements of the same fakes share."""
    found = report.model_dump(exclude={"clocks_before", "clocks_after"})
    for row in found["rows"]:
        del row["clocks"]
    for side in ("base", "pruned"):
        del found[side]["load_seconds"]
    return found


@pytest.mark.parametrize("after", [20, 60, 150, 210])
def test_what_was_timed_is_not_timed_again(tmp_path: Path, after: int) -> None:
    whole = CountingBackend()
    expected = run_bench(whole, whole.pair(), REQUEST)
    kept = tmp_path / "kept"
    interrupted(CountingBackend(), after, kept)
    n_kept = n_timings(kept)
    assert 0 < n_kept < 16
    again = CountingBackend()
    report = run_bench(again, again.pair(), REQUEST, kept_at=kept)
    assert without_time(report) == without_time(expected)
    assert "probe" not in again.log
    assert n_timings(kept) == 16
    # At each point and loading: 2 rounds of warm-up and 4 of measuring, of two models.
    assert len(again.timed) <= len(whole.timed) - 12 * n_kept
    third = CountingBackend()
    assert without_time(run_bench(third, third.pair(), REQUEST, kept_at=kept)) == without_time(expected)
    assert third.log == []


def test_the_control_goes_on_too(tmp_path: Path) -> None:
    request = dataclasses.replace(REQUEST, control=Path("native"))
    kept = tmp_path / "kept"
    whole = CountingBackend()
    expected = run_bench(whole, whole.pair(), request)
    interrupted(CountingBackend(), 3 * len(whole.timed) // 4, kept, request)
    assert n_timings(kept) > 16
    again = CountingBackend()
    report = run_bench(again, again.pair(), request, kept_at=kept)
    assert not any(line.startswith("base") for line in again.log)
    assert report.control is not None
    assert report.control == expected.control


@pytest.mark.parametrize(
    "changes", [{"repeats": 8}, {"sequences": (8,)}, {"max_minutes": 1.0}, {"order": "sequential"}], ids=str
)
def test_another_option_begins_anew(tmp_path: Path, changes: dict[str, object]) -> None:
    kept = tmp_path / "kept"
    interrupted(CountingBackend(), 150, kept)
    request = dataclasses.replace(REQUEST, **changes)
    whole, again = CountingBackend(), CountingBackend()
    run_bench(whole, whole.pair(), request)
    run_bench(again, again.pair(), request, kept_at=kept)
    assert again.log == whole.log


def test_another_model_or_device_begins_anew(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    interrupted(CountingBackend(), 150, kept)
    text = kept.read_text()
    backend = CountingBackend()
    other = dataclasses.replace(backend.pair(), pruned=dataclasses.replace(backend.side("pruned", 1.0), sha256="other"))
    run_bench(backend, other, REQUEST, kept_at=kept)
    kept.write_text(text)
    moved = CountingBackend()
    moved.device = moved.device.model_copy(update={"runtime": "fake 2"})
    run_bench(moved, moved.pair(), REQUEST, kept_at=kept)
    whole = CountingBackend()
    run_bench(whole, whole.pair(), REQUEST)
    assert backend.log == moved.log == whole.log


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value | {"seconds": value["seconds"][:1]},
        lambda value: value | {"seconds": [row[:3] for row in value["seconds"]]},
        lambda value: [],
    ],
)
def test_a_kept_value_of_another_shape_is_measured_again(
    tmp_path: Path, damage: Callable[[dict[str, list[list[float]]]], object]
) -> None:
    kept = tmp_path / "kept"
    interrupted(CountingBackend(), 150, kept)
    first, *lines = kept.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    damaged = [
        [name, [seconds, damage(value) if " at loading " in name else value]] for name, (seconds, value) in entries
    ]
    kept.write_text("".join(f"{line}\n" for line in (first, *map(json.dumps, damaged))))
    whole, again = CountingBackend(), CountingBackend()
    run_bench(whole, whole.pair(), REQUEST)
    run_bench(again, again.pair(), REQUEST, kept_at=kept)
    assert again.timed == whole.timed


@pytest.mark.parametrize("name", ["out", "results.json"])
def test_the_command_goes_on_and_leaves_nothing_behind(
    exported: Callable[[str], tuple[object, Path, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    _, base, _ = exported("llama-gqa")
    prune_graph(base, tmp_path / "pruned", layers=(1, 2))
    call = [
        "bench",
        str(base),
        str(tmp_path / "pruned"),
        "--sequence",
        "8",
        "--repeats",
        "8",
        "-o",
        str(tmp_path / name),
    ]
    calls, measured = [], timing.time_point

    def counted(*arguments: object) -> object:
        calls.append(arguments[2])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr("gatenorm_export.benching.measuring.time_point", counted)
    assert main(call) == ExitCode.INTERRUPTED
    kept = tmp_path / "out" / ".bench-so-far" if name == "out" else tmp_path / ".results.json.bench-so-far"
    assert kept.is_file()
    capsys.readouterr()
    assert main(call) == 0
    # Two points at four loadings, of which three were timed before.
    assert len(calls) == 4 + 8 - 3
    assert "3 of 8 timings were made before; going on" in capsys.readouterr().err
    assert not kept.exists()
    assert main(call) == 0
    assert len(calls) == 9 + 8
