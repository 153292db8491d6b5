"""From content to text: Jinja2 templates that are part of the package, escaped by the environment and not by hand."""

from __future__ import annotations

import functools
import re
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gatenorm_export.reporting.charts import lying_bars, standing_bars
from gatenorm_export.reporting.material import ReportMaterial
from gatenorm_export.reporting.tables import Table
from gatenorm_export.reporting.view import page_of

_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]|~#$])")


class _Finished(str):
    """Markdown that was made here and needs no more escaping."""


def render_html(material: ReportMaterial) -> str:
    """The report as one HTML page that loads nothing: style and pictures are inside, and there is no script."""
    scores, plan = material.scores, material.plan
    charts = {"standing": "", "lying": ""}
    if scores is not None and plan is not None:
        charts = {
            "standing": standing_bars(scores, plan.drop, plan.protect, titled=False),
            "lying": lying_bars(scores, plan.drop, plan.protect),
        }
    return (
        _environment("html")
        .get_template("report.html.j2")
        .render(
            page=page_of(material),
            css=Markup(resources.files(__package__).joinpath("templates/report.css").read_text(encoding="utf-8")),
            **{name: Markup(chart) for name, chart in charts.items()},
        )
    )


def render_markdown(material: ReportMaterial) -> str:
    """The report as Markdown with the same words, tables and figures as the HTML page."""
    return _environment("markdown").get_template("report.md.j2").render(page=page_of(material))


@functools.cache
def _environment(target: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("gatenorm_export.reporting", "templates"),
        autoescape=target == "html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    if target == "markdown":
        environment.finalize = _markdown_text
        environment.globals["table"] = _markdown_table
        environment.globals["fenced"] = _fenced
    return environment


def _markdown_text(value: object) -> object:
    """Escape what Markdown or the HTML inside it would read as markup; a line break would end a table row."""
    if not isinstance(value, str) or isinstance(value, _Finished):
        return value
    text = " ".join(value.split()) if "\n" in value or "\r" in value else value
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN_SIGNS.sub(r"\\\1", text)


def _markdown_table(table: Table) -> _Finished:
    rules = ["---:" if column.kind == "number" else "---" for column in table.columns]
    lines = [[column.name for column in table.columns], *table.rows]
    cells = [[str(_markdown_text(cell)) for cell in line] for line in lines]
    return _Finished("\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rules, *cells[1:]]))


def _fenced(text: str) -> _Finished:
    """``text`` as a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return _Finished(f"{fence}text\n{text}\n{fence}")
