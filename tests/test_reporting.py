"""Reports: the same figures everywhere, self-contained, escaped, and whole in every odd case."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_factory import a_comparison, a_faithfulness, a_material, a_model

from gatenorm_export.reporting import render_html, render_markdown, scores_svg, write_report

VOID = {"meta", "br", "hr", "img", "link", "input", "col"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed without being open; remembers what stays open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """A self-closed tag opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\((?!\#)""", page)
    assert "<script" not in page
    assert 'lang="en"' in page


def test_the_page_is_whole_and_self_contained() -> None:
    check_page(render_html(a_material()))


def test_markdown_and_page_tell_the_same_figures() -> None:
    material = a_material()
    page, markdown = render_html(material), render_markdown(material)
    assert material.comparison.verdict in markdown
    for figure in ("26/30", f"{material.comparison.quality.kl_nats:.3g}"[:4]):
        assert figure in page
        assert figure in markdown


def test_every_dropped_layer_is_marked_without_colour() -> None:
    material = a_material()
    drawing = scores_svg(material.scores, material.plan.drop)
    ElementTree.fromstring(drawing)
    marked = re.findall(r'fill="url\(#[\w-]+\)" data-layer="(\d+)" data-mark="dropped"', drawing)
    assert tuple(map(int, marked)) == material.plan.drop, "hatched"
    assert drawing.count("✕") >= len(material.plan.drop), "and crossed"


def test_a_hostile_name_stays_text() -> None:
    name = "<script>alert(1)</script>|`x`"
    material = a_material()
    scores = material.scores.model_copy(update={"model": a_model(name)})
    plan = material.plan.model_copy(update={"model_name": name, "model_digest": scores.model.query_key_digest})
    check_page(render_html(dataclasses.replace(material, scores=scores, plan=plan)))
    ElementTree.fromstring(scores_svg(scores, plan.drop))


@pytest.mark.parametrize(
    "changes",
    [
        {"latency": None},
        {"faithfulness": a_faithfulness().model_copy(update={"passed": None, "steps": (), "reason": "not run"})},
        {"passed": False},
    ],
    ids=["no latency", "faithfulness not run", "failed"],
)
def test_odd_comparisons_render(changes: dict[str, object]) -> None:
    material = dataclasses.replace(a_material(), comparison=a_comparison(**changes))
    check_page(render_html(material))
    assert render_markdown(material)


def test_without_engines_the_reason_is_told() -> None:
    material = dataclasses.replace(a_material(), engines=(), engines_not_built="no TensorRT is installed")
    check_page(render_html(material))
    assert "no TensorRT is installed" in render_html(material)
    assert "no TensorRT is installed" in render_markdown(material)


def test_files_are_written_and_the_same_twice(tmp_path: Path) -> None:
    material = a_material()
    first = {path.name: path.read_bytes() for path in write_report(tmp_path, material)}
    second = {path.name: path.read_bytes() for path in write_report(tmp_path, material)}
    assert first == second
    assert {"report.json", "report.md", "report.html"} <= set(first)
    assert json.loads(first["report.json"])["schema"] == 1


def test_guard_and_repair_are_told_in_plain_words() -> None:
    from gatenorm_export.records import GuardReport, GuardStep, RepairRecord, SparedLayer

    material = a_material()
    guard = GuardReport(
        search="greedy",
        repair="linear",
        budget=1.05,
        candidates=(1, 0),
        text="some text",
        text_sha256="00",
        n_tokens=2560,
        base_ppl=20.0,
        steps=(GuardStep(layer=1, kl_nats=0.0124, ppl=20.2, ppl_ratio=1.01, cost=1.01),),
        spared=(SparedLayer(layer=0, ppl_ratio=8.4, protected=True, reason="more than the budget"),),
        n_measured=7,
        seconds=12.0,
        sentences=("Protected although the scores offered them: layer 0: more than the budget.",),
    )
    repair = RepairRecord(
        kind="linear",
        file="repair.safetensors",
        text="some text",
        text_sha256="00",
        n_tokens=25344,
        layers=(),
        n_parameters=332352,
        flops_per_token=664704,
        removed_flops_per_token=1769472,
    )
    plan = material.plan.model_copy(update={"guard": guard})
    told = dataclasses.replace(material, plan=plan, repair=repair)
    for page in (render_html(told), render_markdown(told)):
        assert "layer 0: more than the budget" in page
        assert "332,352 parameters" in page
        assert "37.6" in page
        assert "0.0124" in page
        assert "times as fast as" not in page
    latency = material.comparison.latency.model_copy(
        update={"decode_speedup": 0.982, "decode_speedup_low": 0.975, "decode_speedup_high": 0.99}
    )
    for high, words in ((0.99, "By the clock, decode is 0.982"), (1.01, "The repair costs no measurable time")):
        timed = latency.model_copy(update={"decode_speedup_high": high})
        comparison = material.comparison.model_copy(update={"repair_latency": timed})
        assert words in render_markdown(dataclasses.replace(told, comparison=comparison))
    assert "Guard and repair" not in render_html(material)
