"""A part of the fuzz run: every kept input again, fresh ones of every format, and the watch over them at work."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.fuzz.cases import make_case
from benchmarks.fuzz.inputs import Input
from benchmarks.fuzz.judging import Verdict
from benchmarks.fuzz.mutators.pickles import CANARY
from benchmarks.fuzz.mutators.safetensors import mutate_safetensors
from benchmarks.fuzz.pool import Plan, run_cases
from benchmarks.fuzz.regressions import REGRESSIONS, kept_inputs, remember
from benchmarks.fuzz.seeds import all_seeds

FRESH, RUN_SEED = 81, 20260
EXPECTED = {
    **dict.fromkeys(("outside", "native", "process", "code", "write"), "forbidden"),
    "memory": "memory",
    "exception": "exception",
    "half": "half-written",
    "two lines": "no clear line",
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    """One worker's verdicts on the kept inputs, on every seed as it is, and on fresh mutations."""
    kept = kept_inputs(REGRESSIONS)
    plain = tuple(Input(seed.name, seed.targets[0], dict(seed.files)) for seed in all_seeds())
    found: list[Verdict] = []
    plan = Plan(
        [*range(-len(kept) - len(plain), 0), *range(FRESH)],
        RUN_SEED,
        kept=(*kept, *plain),
        workers=1,
        log=str(tmp_path_factory.mktemp("fuzz") / "log"),
    )
    run_cases(plan, all_seeds(), found.append)
    return found


def test_no_input_shows_a_defect(verdicts: list[Verdict]) -> None:
    assert len(verdicts) == FRESH + len(kept_inputs(REGRESSIONS)) + len(all_seeds())
    assert [verdict for verdict in verdicts if verdict.defect] == []


def test_valid_seeds_are_taken_and_damaged_ones_are_not(verdicts: list[Verdict]) -> None:
    plain = [verdict for verdict in verdicts if not verdict.edits]
    # What would open an engine needs more than this machine has; no first target does.
    assert [verdict.seed for verdict in plain if verdict.kind != "ok"] == []
    fresh = [verdict for verdict in verdicts if verdict.number >= 0]
    assert sum(verdict.kind == "refused" for verdict in fresh) > FRESH / 2


def test_inputs_are_the_same_whenever_they_are_made(tmp_path: Path) -> None:
    made = [make_case(7, number, all_seeds()) for number in range(60)]
    again = [make_case(7, number, all_seeds()) for number in range(60)]
    assert made == again
    assert made != [make_case(8, number, all_seeds()) for number in range(60)]
    remember(tmp_path / "kept.json", made)
    remember(tmp_path / "kept.json", made[:5])
    assert list(kept_inputs(tmp_path / "kept.json")) == made
    assert len(json.loads((tmp_path / "kept.json").read_text())) == 60


def test_a_run_that_fails_in_itself_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        def __init__(self, plan: Plan) -> None:
            pass

        def __enter__(self) -> Worker:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def answer(self, number: int) -> Verdict:
            if number == 1:
                raise ArithmeticError("no verdict")
            return Verdict(number, "seed", "target", (), "ok", "", 0.0)

    monkeypatch.setattr("benchmarks.fuzz.pool._Worker", Worker)
    found: list[Verdict] = []
    with pytest.raises(ArithmeticError, match="no verdict"):
        run_cases(Plan([0, 1, 2], workers=1), all_seeds(), found.append)
    assert [verdict.number for verdict in found] == [0]


def test_what_an_edit_nested_without_end_can_be_edited_again() -> None:
    deep = b'{"a":' * 100_000
    data = len(deep).to_bytes(8, "little") + deep
    for seed in range(40):
        changed, what = mutate_safetensors(random.Random(seed), data)
        assert changed != data
        assert what


def test_the_watch_sees_what_must_not_happen(tmp_path: Path) -> None:
    """A target that does each forbidden thing is caught at it, or the rest of this file proves nothing."""
    seed = next(seed for seed in all_seeds() if seed.name == "scores")
    names = (
        "outside",
        "native",
        "process",
        "code",
        "memory",
        "exception",
        "half",
        "two lines",
        "write",
        # The process is lost in these: at the end, so that it is started anew once only.
        "crash",
        "hang",
    )
    inputs = tuple(Input(seed.name, f"broken: {name}", dict(seed.files)) for name in names)
    found: list[Verdict] = []
    numbers = [-1 - place for place in range(len(inputs))]
    plan = Plan(numbers, only=(seed.name,), kept=inputs, workers=1, log=str(tmp_path / "log"), idle_seconds=3)
    run_cases(plan, all_seeds(), found.append)
    kinds = {verdict.target.removeprefix("broken: "): verdict.kind for verdict in found}
    assert kinds == {**EXPECTED, "hang": "hang", "crash": "crash"}
    assert not Path(CANARY).exists()
