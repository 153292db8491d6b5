"""Reports of one pruning: JSON for programs, Markdown for repositories, an HTML page for people, the scores as SVG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import write_text
from gatenorm_export.records import SCHEMA_VERSION, Record, tool_versions
from gatenorm_export.reporting.charts import scores_svg
from gatenorm_export.reporting.material import ReportMaterial
from gatenorm_export.reporting.rendering import render_html, render_markdown

__all__ = [
    "ReportMaterial",
    "render_html",
    "render_json",
    "render_markdown",
    "report_texts",
    "scores_svg",
    "write_comparison",
    "write_report",
]


def write_report(folder: Path, material: ReportMaterial) -> tuple[Path, ...]:
    """Write ``report.json``, ``report.md``, ``report.html`` and ``scores.svg``, each whole or not at all.

    Returns:
        The paths in that order; without scores and a plan there is no picture of them.

    Raises:
        OutputError: a file cannot be written.
    """
    texts = report_texts(material)
    for name, text in texts.items():
        write_text(folder / name, text)
    return tuple(folder / name for name in texts)


def report_texts(material: ReportMaterial) -> dict[str, str]:
    """The files of a report by name, in the order in which they are written."""
    scores, plan = material.scores, material.plan
    texts = {
        "report.json": render_json(material),
        "report.md": render_markdown(material),
        "report.html": render_html(material),
    }
    if scores is not None and plan is not None:
        texts["scores.svg"] = scores_svg(scores, plan.drop, protect=plan.protect)
    return texts


def write_comparison(path: Path, material: ReportMaterial) -> tuple[Path, ...]:
    """Write the comparison's record to ``path``, and beside it the Markdown and the HTML page under the same name.

    Returns:
        The three paths.

    Raises:
        OutputError: a file cannot be written.
    """
    texts = {
        path: material.comparison.to_json(),
        path.with_suffix(".md"): render_markdown(material),
        path.with_suffix(".html"): render_html(material),
    }
    for place, text in texts.items():
        write_text(place, text)
    return tuple(texts)


def render_json(material: ReportMaterial) -> str:
    """All records as one JSON object; not-finite numbers are the strings ``NaN``, ``Infinity`` and ``-Infinity``."""
    whole = {
        "schema": SCHEMA_VERSION,
        "kind": "report",
        "versions": tool_versions(),
        "scores": _plain(material.scores),
        "plan": _plain(material.plan),
        "engines": [_plain(engine) for engine in material.engines],
        "engines_not_built": material.engines_not_built,
        "comparison": _plain(material.comparison),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(record: Record | None) -> Any:
    """The record as its own file would hold it: only the JSON text writes not-finite numbers as strings."""
    return json.loads(record.to_json()) if record is not None else None
