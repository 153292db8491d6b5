"""Whether two rankings agree, when the warning comes, and what the plot marks."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from gatenorm_export.correlating import agreement, correlation_svg, warning_of
from gatenorm_export.correlating.agreement import cut_of
from gatenorm_export.errors import RefusedError
from gatenorm_export.records import CorrelationReport, LayerMeasures


def ranking(order: list[int]) -> dict[int, float]:
    """Values by which the layers go in this order."""
    return {layer: float(place) for place, layer in enumerate(order)}


EIGHT = list(range(8))


def test_equal_rankings_agree_and_give_no_warning() -> None:
    found = agreement("cosine", ranking(EIGHT), {layer: 9.0**layer for layer in EIGHT}, 3)
    assert found.spearman_rho == pytest.approx(1.0)
    assert (found.lowest, found.shared, found.spared, found.apart) == ((0, 1, 2), (0, 1, 2), (), ())
    assert not found.disagrees
    assert found.by_chance == pytest.approx(9 / 8)
    assert found.sentence == (
        "Cosine importance and Gate-Norm share 3 of the 3 lowest layers (1.1 by chance), Spearman 1.00, and place 0 of "
        "8 layers more than a quarter of the ranking apart: they agree on at least half of the layers."
    )
    assert warning_of([found, found]) is None


def test_a_cut_of_which_more_than_half_would_stay_disagrees() -> None:
    """All places are near, so only the cut speaks: 1 of 3 shared warns, 2 of 4 does not."""
    near = ranking([2, 3, 0, 1, 4, 5, 6, 7])
    found = agreement("norm_ratio", ranking(EIGHT), near, 3)
    assert (found.shared, found.spared, found.apart, found.disagrees) == ((0, 2), (1,), (), False)
    found = agreement("norm_ratio", ranking(EIGHT), near, 2)
    assert (found.shared, found.spared, found.apart, found.disagrees) == ((), (0, 1), (), True)
    half = agreement("norm_ratio", ranking(EIGHT), ranking([0, 4, 1, 2, 3, 5, 6, 7]), 2)
    assert (half.shared, half.disagrees) == ((0,), False)
    warning = warning_of([half, found])
    assert warning is not None
    assert "Gate-Norm and the norm ratio disagree on more than half of the layers that would go" in warning
    assert found.sentence.endswith("they disagree on more than half of the 2 lowest.")


def test_more_than_half_of_all_layers_apart_disagrees_although_the_cut_is_shared() -> None:
    reversed_behind = ranking([0, 7, 6, 5, 4, 3, 2, 1])
    found = agreement("cosine", ranking(EIGHT), reversed_behind, 1)
    assert found.shared == (0,)
    # Places 1..7 become 7..1: layers 1, 2, 6, 7 move by 6 and 4, the others by 2 or 0, and 2 is not more than 8 / 4.
    assert (found.apart, found.disagrees) == ((1, 2, 6, 7), False)
    assert "Gate-Norm have the same lowest layer, Spearman" in found.sentence
    worse = agreement("cosine", ranking(EIGHT), ranking([0, 5, 6, 7, 4, 1, 2, 3]), 1)
    assert (worse.apart, worse.disagrees) == ((1, 2, 3, 5, 6, 7), True)
    assert (
        "place 6 of 8 layers more than a quarter of the ranking apart: they disagree on more than half of all layers."
        in worse.sentence
    )
    warning = warning_of([worse])
    assert warning is not None
    assert "disagree on more than half of the layers, the sign" in warning
    # One layer would go, and it is another one: that is no share of the layers.
    other = agreement("cosine", ranking(EIGHT), ranking([1, 0, 2, 3, 4, 5, 6, 7]), 1)
    assert other.disagrees
    assert other.sentence.endswith(
        "place 0 of 8 layers more than a quarter of the ranking apart: they disagree on the layer that would go."
    )


def test_a_random_ranking_of_many_layers_is_told_from_a_related_one() -> None:
    rng = np.random.default_rng(7)
    layers = 400
    gate = {layer: float(value) for layer, value in enumerate(rng.normal(size=layers))}
    unrelated = {layer: float(value) for layer, value in enumerate(rng.normal(size=layers))}
    related = {layer: value + 0.3 * float(rng.normal()) for layer, value in gate.items()}
    assert agreement("cosine", gate, unrelated, 100).disagrees
    assert not agreement("cosine", gate, related, 100).disagrees


def test_the_cut_is_a_quarter_unless_asked() -> None:
    assert [cut_of(30, None, "m"), cut_of(6, None, "m"), cut_of(2, None, "m"), cut_of(6, 6, "m")] == [7, 1, 1, 6]
    for asked in (0, 7):
        with pytest.raises(RefusedError, match=f"--drop {asked}: m has 6"):
            cut_of(6, asked, "m")


def a_report(n_layers: int, cut: int, *, spread: float = 1.0) -> CorrelationReport:
    rng = np.random.default_rng(1)
    rows = tuple(
        LayerMeasures(
            layer=layer,
            gate_norm=200.0 - layer,
            norm_ratio=float(rng.uniform(0.1, 0.5)) * (spread if layer == 0 else 1),
            cosine=float(rng.uniform(0.02, 0.1)),
        )
        for layer in range(n_layers)
    )
    gate = {entry.layer: entry.gate_norm for entry in rows}
    found = (
        agreement("norm_ratio", gate, {entry.layer: entry.norm_ratio for entry in rows}, cut),
        agreement("cosine", gate, {entry.layer: entry.cosine for entry in rows}, cut),
    )
    return CorrelationReport(
        model_name="a <tiny> model",
        model_digest=None,
        text="a & b.txt",
        text_sha256="0",
        n_tokens=2048,
        window_tokens=256,
        cut=cut,
        cut_asked=True,
        lowest=tuple(range(n_layers - cut, n_layers)),
        layers=rows,
        agreements=found,
        warning=warning_of(found),
        sentence=" ".join(entry.sentence for entry in found),
        seconds=1.0,
    )


@pytest.mark.parametrize(("n_layers", "cut", "spread"), [(6, 1, 1.0), (30, 7, 300.0), (120, 30, 1.0)])
def test_the_plot_marks_the_lowest_of_each_panel(n_layers: int, cut: int, spread: float) -> None:
    report = a_report(n_layers, cut, spread=spread)
    drawing = correlation_svg(report)
    root = ElementTree.fromstring(drawing)
    space = "{http://www.w3.org/2000/svg}"
    bands = [band.get("data-band") for band in root.iter(f"{space}rect") if band.get("data-band")]
    assert bands == [f"{n_layers - cut}-{n_layers - 1}"] * 3
    points = [group for group in root.iter(f"{space}g") if group.get("data-layer")]
    assert len(points) == 3 * n_layers
    crossed = [[], [], []]
    for index, point in enumerate(points):
        if any(path.get("class") == "gc-cross" for path in point):
            crossed[index // n_layers].append(int(point.get("data-layer")))
    assert crossed == [list(report.lowest), *(list(entry.lowest) for entry in report.agreements)]
    assert ("log scale" in drawing) == (spread > 1)
    assert CorrelationReport.model_validate_json(report.to_json()) == report
