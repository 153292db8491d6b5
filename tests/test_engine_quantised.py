"""Engines of quantised graphs: each has a tolerance, which the right one holds and a wrong one does not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from engine_stand_ins import Change, StandIn
from quantised_graphs import quantised
from report_factory import a_prepared_graph, an_engine

from gatenorm_export.building import ShapeRequest, make_profiles
from gatenorm_export.comparing.engine_accuracy import check_engine
from gatenorm_export.comparing.engine_judging import QUANTISED, RELATIVE, ROUNDINGS, tolerance_of
from gatenorm_export.precision import Arithmetic, graph_arithmetic, graph_precision, prepare_graph
from gatenorm_export.records import EngineAccuracy, Precision

Kind = Literal["fp8", "int4"]


@pytest.fixture(scope="module")
def graphs(exported, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, source = tmp_path_factory.mktemp("quantised"), exported("llama-gqa")[1]
    return {
        "fp8": quantised(source, folder / "fp8" / "model.onnx", "fp8"),
        "int4": quantised(source, folder / "int4" / "model.onnx", "int4"),
        "plain": quantised(source, folder / "plain" / "model.onnx", "plain"),
        "fp8 wrong": quantised(source, folder / "fp8-wrong" / "model.onnx", "fp8", wrong=9),
        "plain wrong": quantised(source, folder / "plain-wrong" / "model.onnx", "plain", wrong=9),
        "float": source,
    }


def checked(graph: Path, engine: Path, precision: Precision, change: Change | None = None) -> EngineAccuracy:
    record = an_engine("aa" * 32, "base.engine").model_copy(
        update={
            "profiles": make_profiles(graph, ShapeRequest(batch=2, prompt=16, context=40)),
            "precision": precision,
            "prepared": None,
        }
    )
    runner = StandIn(engine, change)
    return check_engine(engine, record, graph, "pruned", device="a GPU", make_runner=lambda path, record: runner)


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_the_precision_as_it_is_and_the_precision_that_was_asked_for_are_one(
    graphs: dict[str, Path], kind: Kind, tmp_path: Path
) -> None:
    assert graph_precision(graphs[kind]) == kind
    assert graph_arithmetic(graphs[kind]) == Arithmetic("fp32", quantised=kind == "fp8", packed_rounds=False)
    assert not prepare_graph(graphs[kind], tmp_path / "out", flavour="tensorrt-rtx", precision=kind).changed
    assert graph_precision(graphs["float"]) == "fp32"


def test_an_engine_with_4_bit_weights_has_the_tolerance_of_what_computes_with_them(graphs: dict[str, Path]) -> None:
    found = checked(graphs["int4"], graphs["plain"], "int4")
    assert found.passed is True, found.reason
    assert found.outputs[0].tolerance == pytest.approx(RELATIVE * found.outputs[0].range)
    assert found.tolerance_from == "int4 with activations in fp32: 1e-04 of the output's range"
    wrong = checked(graphs["int4"], graphs["plain wrong"], "int4")
    assert wrong.passed is False
    # Another quantisation of the same model is another graph.
    assert checked(graphs["int4"], graphs["float"], "int4").passed is False


def test_an_engine_that_rounds_activations_to_fp8_may_round_the_other_way(graphs: dict[str, Path]) -> None:
    def nudged(outputs, call: int) -> None:
        outputs["logits"] += np.float32(0.05 * np.ptp(outputs["logits"]))

    for precision in ("fp8", "fp32"):
        found = checked(graphs["fp8"], graphs["fp8"], precision, nudged)
        assert found.passed is True, found.reason
        assert "25.0% of the output's range, since activations are rounded" in found.tolerance_from
        assert checked(graphs["fp8"], graphs["fp8 wrong"], precision).passed is False
    # The same nudge is far too much where nothing rounds to few bits.
    assert checked(graphs["int4"], graphs["plain"], "int4", nudged).passed is False


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_caches_in_each_others_place_fail(graphs: dict[str, Path], kind: Kind) -> None:
    def swapped(outputs, call: int) -> None:
        outputs["present.1.key"], outputs["present.2.key"] = outputs["present.2.key"], outputs["present.1.key"]

    found = checked(graphs[kind], graphs["plain" if kind == "int4" else kind], kind, swapped)
    assert found.passed is False
    assert "present." in found.reason


@pytest.mark.parametrize("quantises", [False, True])
@pytest.mark.parametrize("activations", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8", "int4"])
@pytest.mark.parametrize("why", [None, "ONNX Runtime on the CPU does not run it: no kernel"])
def test_no_engine_is_without_a_tolerance(
    precision: Precision, activations: Precision, quantises: bool, why: str | None
) -> None:
    prepared = None
    if why is not None:
        prepared = a_prepared_graph(precision, unmeasured=why)
    record = an_engine("aa" * 32, "e").model_copy(update={"precision": precision, "prepared": prepared})
    found = tolerance_of(record, Arithmetic(activations, quantises, packed_rounds=False))
    kind = activations if precision in ("fp8", "int4") else precision
    plain = {"fp32": RELATIVE, "fp16": ROUNDINGS / 2**11, "bf16": ROUNDINGS / 2**8}[kind]
    assert found.of("logits") == found.of("present.0.key") == (QUANTISED if quantises else plain)
    assert precision in found.words
    assert (why or "range") in found.words
