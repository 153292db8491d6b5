"""Engines against their graphs: the same code with ONNX Runtime standing for the engine, right and wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from engine_stand_ins import Change, HalfStandIn, StandIn
from report_factory import a_prepared_graph, an_engine

from gatenorm_export.building import ShapeRequest, make_profiles
from gatenorm_export.comparing.engine_accuracy import Found, check_engine, compare_runner
from gatenorm_export.comparing.engine_judging import RELATIVE, Tolerance, tolerance_of
from gatenorm_export.errors import RefusedError
from gatenorm_export.precision import Arithmetic
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import (
    ConversionCheck,
    EngineAccuracy,
    OutputAccuracy,
    OutputDifference,
    Precision,
    PreparedGraph,
)

FP32 = Tolerance(RELATIVE, {}, "fp32")
PLAIN = Arithmetic("fp32", quantised=False, packed_rounds=False)


@pytest.fixture(scope="module")
def graph(exported) -> Path:
    return exported("llama-gqa")[1]


def outcome(graph: Path, change: Change | None = None, tolerance: Tolerance = FP32) -> tuple[Found, OutputAccuracy]:
    found = compare_runner(graph, StandIn(graph, change), tolerance)
    worst = max(found.outputs, key=lambda entry: (entry.passed is False, entry.share))
    return found, worst


def test_the_right_engine_passes_output_by_output(graph: Path) -> None:
    found, _ = outcome(graph)
    assert found.passed is True
    assert [entry.output for entry in found.outputs][:3] == ["logits", "present.0.key", "present.0.value"]
    assert len(found.outputs) == 1 + 2 * 4
    assert found.steps[0] == "prefill"
    assert {"decode 1", "decode 4", "chunk of 4", "decode 6"} <= set(found.steps)
    for entry in found.outputs:
        assert entry.passed
        assert entry.tolerance == pytest.approx(RELATIVE * entry.range)
        assert entry.worst is not None
        assert entry.worst.step in found.steps
    assert "9 outputs" in found.reason


def test_one_output_that_is_a_little_off_fails_and_is_named_with_both_values(graph: Path) -> None:
    def change(outputs, call: int) -> None:
        if call == 3:
            outputs["present.2.value"][1, 0, 15, 7] += 0.5

    found, worst = outcome(graph, change)
    assert found.passed is False
    assert (worst.output, worst.worst.step, worst.worst.index) == ("present.2.value", "decode 3", (1, 0, 15, 7))
    assert worst.worst.got - worst.worst.expected == pytest.approx(0.5, abs=1e-4)
    assert "present.2.value" in found.reason
    assert "[1, 0, 15, 7] in decode 3" in found.reason
    # What came before the change in the same step, and its own cache until then, is right.
    assert next(entry for entry in found.outputs if entry.output == "present.0.key").passed


def test_a_nan_fails_wherever_it_is(graph: Path) -> None:
    def change(outputs, call: int) -> None:
        if call == 0:
            outputs["logits"][0, -1, 11] = np.nan

    found, worst = outcome(graph, change)
    assert found.passed is False
    assert (worst.output, worst.worst.index[-1], worst.worst.step) == ("logits", 11, "prefill")
    assert math.isnan(worst.worst.got)
    assert math.isinf(worst.max_abs_error)
    # However much is allowed.
    assert outcome(graph, change, Tolerance(1e9, {}, "wide"))[0].passed is False


def test_what_is_computed_for_padding_is_nobodys_business(graph: Path) -> None:
    def change(outputs, call: int) -> None:
        if call == 0:
            outputs["logits"][1, 0] = np.nan

    assert outcome(graph, change)[0].passed is True


def test_cache_tensors_in_each_others_place_fail(graph: Path) -> None:
    def change(outputs, call: int) -> None:
        outputs["present.1.key"], outputs["present.2.key"] = outputs["present.2.key"], outputs["present.1.key"]

    found, worst = outcome(graph, change)
    assert found.passed is False
    assert next(entry for entry in found.outputs if entry.output == "present.1.key").passed is False
    assert worst.worst is not None


@pytest.mark.parametrize("layers", [(3,), (0, 1, 2, 3)], ids=str)
def test_the_engine_of_another_graph_fails(graph: Path, tmp_path: Path, layers: tuple[int, ...]) -> None:
    pruned = prune_graph(graph, tmp_path / "pruned.onnx", layers=layers)
    assert pruned.dropped == layers
    found = compare_runner(graph, StandIn(tmp_path / "pruned.onnx"), FP32)
    assert found.passed is False
    missing = [entry for entry in found.outputs if "missing" in entry.note]
    assert len(missing) == 2 * len(layers)
    assert next(entry for entry in found.outputs if entry.output == "logits").passed is False
    # The other way round there are inputs that the graph knows nothing of.
    back = compare_runner(tmp_path / "pruned.onnx", StandIn(graph), FP32)
    assert back.passed is False
    assert "is no engine of this graph" in back.reason


def test_the_same_shapes_with_other_numbers_fail(exported, graph: Path, tmp_path: Path) -> None:
    """Two graphs with one layer less each: the same names and shapes, and not the same model."""
    prune_graph(graph, tmp_path / "a.onnx", layers=(1,))
    prune_graph(graph, tmp_path / "b.onnx", layers=(2,))
    found = compare_runner(tmp_path / "a.onnx", StandIn(tmp_path / "b.onnx"), FP32)
    assert found.passed is False
    assert compare_runner(tmp_path / "a.onnx", StandIn(tmp_path / "a.onnx"), FP32).passed is True


def test_an_engine_that_breaks_down_is_one_line(graph: Path) -> None:
    def change(outputs, call: int) -> None:
        if call == 2:
            raise RuntimeError("CUDA error 999: the GPU has fallen off the bus\nmore")

    with pytest.raises(RefusedError, match=r"engine failed at a step .*fallen off the bus") as out:
        outcome(graph, change)
    assert "\n" not in str(out.value)


def record_of(graph: Path, precision: str = "fp32", prepared: PreparedGraph | None = None, batch: int = 1):
    profiles = make_profiles(graph, ShapeRequest(batch=batch, prompt=16, context=40))
    return an_engine("aa" * 32, "base.engine").model_copy(
        update={"profiles": profiles, "precision": precision, "prepared": prepared}
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_steps_stay_within_the_engines_profiles_and_choose_them(graph: Path, batch: int) -> None:
    runner = StandIn(graph)
    result = check_engine(
        Path("base.engine"),
        record_of(graph, batch=batch),
        graph,
        "unpruned",
        device="a GPU",
        make_runner=lambda path, record: runner,
    )
    assert result.passed is True
    # A prompt by the first profile, one token by the second, a few at once by the first again.
    assert runner.profiles[:6] == [0, 1, 1, 1, 1, 0]
    assert any("padded" in step for step in result.steps) == (batch == 1)
    assert EngineAccuracy.model_validate_json(result.model_dump_json()) == result
    assert result.tolerance_from.startswith("fp32: 1e-04")
    narrow = record_of(graph).model_copy(
        update={"profiles": make_profiles(graph, ShapeRequest(prompt=2, context=3, decode_step=1))}
    )
    cut = check_engine(
        Path("e"), narrow, graph, "pruned", device="a GPU", make_runner=lambda path, record: StandIn(graph)
    )
    assert cut.passed is True
    assert cut.steps[0] == "prefill"


def test_tolerances_come_from_the_conversion(graph: Path) -> None:
    def tolerance(precision: Precision, check: ConversionCheck | None, unmeasured: str | None = None) -> Tolerance:
        prepared = a_prepared_graph(precision, check=check, unmeasured=unmeasured)
        return tolerance_of(record_of(graph, precision, prepared), PLAIN)

    check = ConversionCheck(
        how="",
        steps=("prompt",),
        outputs=(
            OutputDifference(output="logits", max_abs=0.02, range=10, relative=0.002),
            OutputDifference(output="cache", max_abs=0.005, range=1, relative=0.005),
        ),
    )
    found = tolerance("fp16", check)
    assert found.of("logits") == pytest.approx(0.008)
    assert found.of("present.3.key") == pytest.approx(0.02)
    assert "fp16" in found.words
    nothing = tolerance("fp16", None, "not asked for")
    assert nothing.of("logits") == pytest.approx(16 / 2048)
    assert "not asked for" in nothing.words
    assert tolerance_of(record_of(graph, "fp16"), PLAIN).of("logits") == pytest.approx(16 / 2048)
    assert tolerance_of(record_of(graph), PLAIN).of("logits") == 1e-4

    # Half a per cent of the range more than rounding explains, and it fails; the same within it, and it passes.
    def change(outputs, call: int) -> None:
        outputs["logits"] += 0.01 * np.ptp(outputs["logits"])

    assert outcome(graph, change, found)[0].passed is False
    assert outcome(graph, change, Tolerance(0.02, {}, ""))[0].passed is True


def test_a_cache_in_bfloat16_goes_round_as_it_is(graph: Path) -> None:
    found = compare_runner(graph, HalfStandIn(graph), Tolerance(0.05, {}, ""))
    assert found.passed is True
    cache = next(entry for entry in found.outputs if entry.output == "present.0.key")
    assert 0 < cache.max_abs_error < 0.01 * cache.range
    assert compare_runner(graph, HalfStandIn(graph), FP32).passed is False
