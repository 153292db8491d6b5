"""Reports: the same figures everywhere, self-contained, escaped, and whole in every odd case."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_factory import (
    a_comparison,
    a_faithfulness,
    a_latency,
    a_material,
    a_model,
    an_accuracy,
    with_predictions,
)

from gatenorm_export.cli.tables import comparison_tables
from gatenorm_export.records import ComparisonReport, WorstElement
from gatenorm_export.reporting import (
    ReportMaterial,
    render_html,
    render_markdown,
    scores_svg,
    write_comparison,
    write_report,
)

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


def test_cuts_that_were_asked_about_are_told_apart_without_colour() -> None:
    scores = a_material().scores
    cuts = {19: "drop 2", 28: "drop 2", 27: "drop 4", 29: "drop 4", 7: "drop 16"}
    drawing = scores_svg(scores, cuts, protect=(0,))
    ElementTree.fromstring(drawing)
    found = re.findall(r'fill="url\(#([\w-]+)\)" data-layer="(\d+)" data-mark="([^"]+)"', drawing)
    assert {int(layer): word for _, layer, word in found} == cuts
    hatches = {word: {hatch for hatch, _, its in found if its == word} for word in cuts.values()}
    assert len(set.union(*hatches.values())) == len(hatches) == 3, "a hatch for each cut"
    patterns = re.findall(r'<pattern id="([\w-]+)" width="(\d+)".*?rotate\((\d+)\)', drawing)
    assert {name for name, _, _ in patterns} == set.union(*hatches.values())
    assert len({(step, angle) for _, step, angle in patterns}) == 3, "that looks different"
    signs = re.findall(r'gn-sign"[^>]*>([^<]+)<', drawing)
    assert sorted(signs) == sorted(["2", "2", "4", "4", "16"]), "and the number on the bar"
    assert "Drop 2: 19 and 28. Drop 4: 27 and 29. Drop 16: 7. Protected: 0." in drawing
    assert "dropped" not in drawing.lower()
    for word in ("drop 2", "drop 4, too", "drop 16, too"):
        assert f">{word}</text>" in drawing, "in the legend"
    many = {layer: f"drop {layer}" for layer in range(1, 9)}
    assert "on a bar: the smallest cut that takes it" in scores_svg(scores, many)


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


def engines_compared(**changes: object) -> ReportMaterial:
    comparison = a_comparison(
        latency=with_predictions(a_latency(), short=True),
        engine_accuracy=(an_accuracy(), an_accuracy("pruned", 26, **changes)),
        engine_latency=with_predictions(a_latency()).model_copy(update={"device": "NVIDIA L4, 24 GiB"}),
    )
    return dataclasses.replace(a_material(), comparison=comparison)


def test_the_roofline_stands_beside_the_latency() -> None:
    material = engines_compared()
    page, markdown = render_html(material), render_markdown(material)
    check_page(page)
    for text in (page, markdown):
        assert "is left on the table in 1 of 6 rows: prefill of 32 tokens: 1.12× of 1.24×." in text
        assert "Whether 3 of 6 rows have at least 95\u00a0% of" in text
        assert "decode after 512 tokens: 1.14× of 1.22×." in text
        assert "90.1\u00a0% of 1.24×, short" in text
        assert "93.5\u00a0% of 1.22×, not decided" in text
        assert "21.4\u00a0GB/s" in text
    # A diamond for each row, and the axis reaches as far as the farthest one.
    goals = [float(found) for found in re.findall(r'class="goal" style="left:([\d.]+)%"', page)]
    assert len(goals) == 6 + 6, "of the graphs, and of the engines"
    assert all(0 < goal < 100 for goal in goals)
    assert "of 1.24× predicted" in page
    latency = with_predictions(a_latency())
    sure = latency.model_copy(
        update={"rows": tuple(row.model_copy(update={"speedup_low": row.speedup}) for row in latency.rows)}
    )
    whole = render_markdown(dataclasses.replace(material, comparison=a_comparison(latency=sure)))
    assert "Every row has at least 95" in whole
    wide = render_markdown(dataclasses.replace(material, comparison=a_comparison(latency=latency)))
    assert "Every row has" not in wide
    assert "is not decided, their intervals reach to both sides" in wide
    reason = a_latency().model_copy(update={"roofline_reason": "its experts are chosen as it runs"})
    without = render_html(dataclasses.replace(material, comparison=a_comparison(latency=reason)))
    assert "There is no roofline: its experts are chosen as it runs." in without
    assert 'class="goal"' not in without


def test_a_machine_that_was_not_idle_is_told_beside_the_latency(tmp_path: Path) -> None:
    note = "the machine was not idle: other work took 1.5 threads while this one computed with 2 threads"
    comparison = a_comparison(latency=a_latency().model_copy(update={"notes": (note,)}))
    material = dataclasses.replace(a_material(), comparison=comparison)
    page = render_html(material)
    check_page(page)
    assert f'<p class="note">{note.capitalize()}.</p>' in page
    assert f"\n{note.capitalize()}.\n" in render_markdown(material)
    assert f"note: {note}" in comparison_tables(comparison)
    assert "not idle" not in render_html(a_material())


def test_engines_are_shown_output_by_output_and_conversion_apart() -> None:
    material = engines_compared(wrong="present.12.value")
    page, markdown = render_html(material), render_markdown(material)
    check_page(page)
    for text in (page, markdown):
        assert "Accuracy of the unpruned engine" in text
        assert "FAILED: present.12.value" in text
        assert "Tolerance: 4 times the error that the build measured" in text
        assert "pruning apart" in text
        assert "What pruning costs is under Quality" in text
        assert "[0, 2, 27, 40]" in text.replace("\\", "")
        # All of 61 and 53 outputs are in the tables.
        assert text.count("✓ passed") >= 60 + 52
        assert text.count("✗ failed") == 1
    # The bars: the first output, then what is wrong, in shape and sign.
    bars = re.findall(r'<span class="label">([\w.]+)</span>\s*<span class="track"[^>]*><i class="(\w+)"', page)
    assert [label for label, _ in bars if label == "logits"] == ["logits", "logits"]
    assert ("present.12.value", "failed") in bars
    assert [kind for _, kind in bars].count("failed") == 1
    assert "✗ 3.7 times" in page
    assert '<div class="card bad"><dt>Engines right</dt><dd class="value">no</dd>' in page


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_or_missing_is_said_in_words(value: float, tmp_path: Path) -> None:
    bad = an_accuracy("pruned", 1, wrong="logits")
    worst = WorstElement(step="prefill", index=(0, 0, 1), expected=1.5, got=value)
    first = bad.outputs[0].model_copy(update={"max_abs_error": math.inf, "worst": worst})
    gone = bad.outputs[1].model_copy(
        update={"max_abs_error": math.inf, "worst": None, "passed": False, "note": "prefill: it is missing"}
    )
    comparison = a_comparison(engine_accuracy=(bad.model_copy(update={"outputs": (first, gone)}),))
    material = dataclasses.replace(a_material(), comparison=comparison)
    page = render_html(material)
    check_page(page)
    assert "✗ not finite" in page
    assert "✗ missing" in page
    assert ("not a number" if math.isnan(value) else "∞") in page
    comparison.save(tmp_path / "compare.json")
    again = ComparisonReport.load(tmp_path / "compare.json").engine_accuracy[0].outputs[0]
    assert math.isinf(again.max_abs_error)
    assert again.worst is not None
    assert str(again.worst.got) == str(value)


def test_engines_without_a_gpu_say_that_they_were_not_run() -> None:
    reason = "not run: no GPU (running an engine needs an NVIDIA GPU, and this machine shows none)"
    nothing = tuple(
        an_accuracy(role, outputs=(), steps=(), passed=None, reason=reason) for role in ("unpruned", "pruned")
    )
    material = dataclasses.replace(a_material(), comparison=a_comparison(engine_accuracy=nothing))
    page, markdown = render_html(material), render_markdown(material)
    for text in (page, markdown):
        assert text.count("Not run: no GPU") == 2
        assert "not run" in text
    assert '<dt>Engines right</dt><dd class="value">not run</dd>' in page


def test_a_comparison_of_two_graphs_needs_no_scores(tmp_path: Path) -> None:
    material = dataclasses.replace(a_material(), scores=None, plan=None, model=a_model())
    paths = write_comparison(tmp_path / "proof.json", material)
    assert [path.name for path in paths] == ["proof.json", "proof.md", "proof.html"]
    assert ComparisonReport.load(paths[0]) == material.comparison
    page = paths[2].read_text()
    check_page(page)
    assert "SmolLM2-135M-Instruct without 4 attention sublayers" in page
    assert "in layers 19 and 27 to 29." in page
    for absent in ("<h2>Scores</h2>", "Policy", "Protected", "gn-standing"):
        assert absent not in page
    # Graphs that do not say where they come from.
    unknown = dataclasses.replace(material, model=None)
    check_page(render_html(unknown))
    assert "out/onnx/model.onnx without 4 attention sublayers" in render_markdown(unknown)


def test_records_of_before_engines_and_rooflines_still_load(tmp_path: Path) -> None:
    old = json.loads(a_comparison().to_json())
    del old["engine_accuracy"]
    for name in ("probe", "roofline_reason"):
        del old["latency"][name]
    for entry in old["latency"]["rows"]:
        del entry["roofline"]
    (tmp_path / "compare.json").write_text(json.dumps(old))
    comparison = ComparisonReport.load(tmp_path / "compare.json")
    page = render_html(dataclasses.replace(a_material(), comparison=comparison))
    check_page(page)
    assert "roofline" not in page
    assert "Engines right" not in page


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it_without_overflow(tmp_path: Path, width: int, dark: bool) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here")
    material = engines_compared(wrong="present.12.value")
    # Figures of a large machine: as wide as they get, in the widest of the tables.
    latency = material.comparison.latency
    assert latency is not None
    rows = (
        {"sequence": 8 * row.sequence, "repeats": 152}
        | {name: 19.3 * getattr(row, name) for name in ("base_tokens_per_s", "pruned_tokens_per_s")}
        | {
            f"{side}_{at}_ms": 5 * getattr(row, f"{side}_{at}_ms")
            for side in ("base", "pruned")
            for at in ("p50", "p90")
        }
        for row in latency.rows
    )
    wide = [row.model_copy(update=figures) for row, figures in zip(latency.rows, rows, strict=True)]
    latency = latency.model_copy(update={"rows": tuple(wide)})
    material = dataclasses.replace(material, comparison=material.comparison.model_copy(update={"latency": latency}))
    (tmp_path / "page.html").write_text(render_html(material))
    # A frame, since no window is as narrow as a phone.
    (tmp_path / "frame.html").write_text(
        f'<!doctype html><iframe id="f" src="page.html" style="border:0;width:{width}px;height:900px"></iframe><script>'
        "onload = () => { const page = document.getElementById('f').contentDocument.documentElement; "
        "const beyond = [...page.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > "
        "page.clientWidth + 1 && !e.closest('.scroll')).map(e => e.className); document.body.dataset.found = "
        "[page.scrollWidth <= page.clientWidth, beyond.length, getComputedStyle(page.querySelector('body')).color, "
        "[...page.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length].join('|') }</script>"
    )
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
            *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []),
            f"--window-size={max(width, 500)},900", "--virtual-time-budget=2000", "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'data-found="(.*?)"', done.stdout)
    assert found, done.stderr[-500:]
    fits, beyond, ink, cut_off = found[1].split("|")
    assert (fits, beyond) == ("true", "0")
    # A phone scrolls through wide tables; a larger screen has room for all of each.
    assert width < 1000 or cut_off == "0"
    assert (int(re.findall(r"\d+", ink)[0]) > 128) == dark
