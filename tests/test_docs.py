"""The documentation: its site builds without a warning, all links lead somewhere, and it says what the code is."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from documented import DOCS, ROOT, commands, pages

from docs_build.command_line import parser_of
from docs_build.python_api import page_of, public_modules, public_names
from gatenorm_export.cli.main import VERBS, make_parser
from gatenorm_export.errors import ExitCode

FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page of the site links to, what it loads, and the places that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif tag in FETCHED and FETCHED[tag] in attributes:
            self.loaded.append(attributes[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Page]:
    """Every page, by its path. The page of a server's 404 has paths from a server's root, so it is left out."""
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_leads_somewhere(built: dict[Path, Page]) -> None:
    for path, page in built.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in built[target].anchors, f"{path.name}: {link}"


def test_reading_a_page_fetches_nothing_from_elsewhere(built: dict[Path, Page]) -> None:
    for path, page in built.items():
        for source in page.loaded:
            assert (path.parent / urlsplit(source).path).is_file(), f"{path.name}: {source}"


def test_tables_are_tables(built: dict[Path, Page]) -> None:
    assert [path.name for path, page in built.items() if re.search(r"\|\s*:?---", page.text)] == []


def test_links_of_the_readme_lead_somewhere(site: Path, built: dict[Path, Page]) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    for name, _, anchor in (link.partition("#") for link in links if "://" not in link):
        assert (ROOT / name).is_file(), name
        if anchor:
            page = site / Path(name).relative_to("docs").with_suffix(".html")
            assert anchor in built[page].anchors, f"{name}#{anchor}"


def test_every_page_is_reached_from_the_readme() -> None:
    named = set(re.findall(r"\]\((docs/[\w/-]+\.md)", (ROOT / "README.md").read_text()))
    written = {path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md")}
    assert written - named <= {"docs/index.md", "docs/reference/python.md"}


def test_records_show_their_fields(site: Path) -> None:
    page = (site / "reference" / "python" / "gatenorm_export.records.html").read_text()
    assert re.search(r"PrunePlan\(\s*\*,[^)]*\bdrop: tuple\[int, \.\.\.\],", re.sub(r"<[^>]+>", "", page))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_option_is_in_the_reference(site: Path, verb: str) -> None:
    page = (site / "reference" / "cli.html").read_text()
    section = page.split(f'<h2 id="{verb}">')[1].split("<h2 ")[0]
    options = {option for action in parser_of(verb)._actions for option in action.option_strings} - {"-h", "--help"}
    assert {option for option in options if not re.search(rf"<code>{option}[< ]", section)} == set()
    assert re.search(rf"^\| `{verb}` \|", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_every_public_name_is_in_the_reference(site: Path, built: dict[Path, Page]) -> None:
    places = {anchor for page in built.values() for anchor in page.anchors}
    for module in public_modules():
        page = built[(site / page_of(module)).with_suffix(".html")]
        for name, path in public_names(module).items():
            assert path in page.anchors or f"<code>{name}</code>" in page.text, f"{module}.{name}"
            assert any(place.endswith(f".{path.rpartition('.')[2]}") for place in places), path


def test_every_exit_code_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "exit-codes.html").read_text()
    assert set(re.findall(r"<td>(\d+)</td>", page)) == {str(int(code)) for code in ExitCode}


def test_every_extra_is_told() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", (DOCS / "pipelines.md").read_text(), re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    # The rest is for those who change gatenorm itself, and for the C++ programs, whose page names it.
    assert set(project["optional-dependencies"]) - {"graphs", "graphs5", "docs", "dev", "cpp"} <= told


def test_commands_that_are_not_run_can_be_parsed() -> None:
    """Those that take minutes, a GPU or a network: at least their verbs, arguments and options exist."""
    shown = [(page, command) for page, command in commands("text") if command.startswith("gatenorm ")]
    assert shown
    for page, command in shown:
        words = shlex.split(command, comments=True)[1:]
        try:
            make_parser(words[:1]).parse_args(words)
        except SystemExit:
            pytest.fail(f"{page}: {command}")


def test_programs_and_variables_of_the_cpp_page_exist() -> None:
    page = (DOCS / "cpp.md").read_text()
    files = [*(ROOT / "examples" / "cpp").rglob("CMakeLists.txt"), *(ROOT / "examples" / "cpp").rglob("*.cmake")]
    build = "\n".join(path.read_text() for path in files)
    source = "\n".join(path.read_text() for path in (ROOT / "examples" / "cpp" / "src").rglob("*.*"))
    runtimes = set(re.findall(r"gatenorm-decode-([a-z-]+)", page))
    assert {name for name in runtimes if name not in build} == set()
    variables = set(re.findall(r"-D([A-Z]\w+)=", page)) | set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", page))
    assert {name for name in variables if name not in build} <= {"CMAKE_PREFIX_PATH", "CUDAToolkit_ROOT"}
    options = set(re.findall(r"`(--[a-z-]+)[ `]", page))
    for line in re.findall(r"^build/cpp/.*$", page, re.MULTILINE):
        options |= set(re.findall(r"--[a-z-]+", line))
    assert {option for option in options if option not in source} == set()


def test_options_that_the_text_names_exist() -> None:
    known = {"--help", "--version"}
    for verb in VERBS:
        known |= {option for action in parser_of(verb)._actions for option in action.option_strings}
    for page in pages():
        # Pages on deployment also name options of other programs.
        ours = "gatenorm " if page.stem in {"cpp", "pipelines", "security", "triton"} else "gatenorm |--"
        for span in re.findall(rf"`((?:{ours})[^`]+)`", page.read_text()):
            named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", span))
            assert named <= known, f"{page.name}: {span}"


def test_the_matrix_in_the_documentation_is_the_measured_one(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.matrix.__main__ import main

    assert main(["--results", str(ROOT / "benchmarks" / "results" / "matrix.json"), "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table.strip() in (DOCS / "surgery.md").read_text()
    faithful, refused, *impossible = map(int, re.findall(r"\d+", table.split("| **all** |")[1].splitlines()[0]))
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{faithful} graphs faithful, {refused} refused in part" in readme
    assert f"{sum(impossible)} could not be exported or run" in readme
