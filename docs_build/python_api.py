"""A hook of mkdocs: one page for each public package, whose text mkdocstrings takes from the docstrings.

Public is a package that declares ``__all__``, and the two modules that a caller of the whole needs: the pipeline and
the errors. They are found in the source, so that a new package is in the reference without a word.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parent.parent
MODULES = ("gatenorm_export.errors", "gatenorm_export.pipeline")
_SECTION = "Python"


def public_modules() -> list[str]:
    """The dotted names of what the reference documents, in alphabetical order."""
    packages = [
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("gatenorm_export", "graph_passes")
        for path in ROOT.glob(f"{top}/**/__init__.py")
        if "__all__" in path.read_text()
    ]
    # Of the toolchain itself nothing is public but its version.
    return sorted({*packages, *MODULES} - {"gatenorm_export"})


def public_names(module: str) -> dict[str, str]:
    """What ``module`` declares public, or defines where it declares nothing: each name, and the dotted path of the
    definition. Read from the source, without importing it."""
    tree = ast.parse(_source(module).read_text())
    # A function may have the name of the file that it lies in, and then only the path tells which is meant.
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {name: imported.get(name, f"{module}.{name}") for name in _declared(tree)}


def page_of(module: str) -> str:
    """The page of a module, relative to the site's sources."""
    return f"reference/python/{module}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages under Reference > Python."""
    sections = config.nav or []
    reference = next(entry["Reference"] for entry in sections if "Reference" in entry)
    python = next(entry[_SECTION] for entry in reference if _SECTION in entry)
    python.extend({module: page_of(module)} for module in public_modules())
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages to the site."""
    from mkdocs.structure.files import File

    for module in public_modules():
        files.append(File.generated(config, page_of(module), content="\n\n".join(_page(module)) + "\n"))
    return files


def _page(module: str) -> Iterator[str]:
    yield f"# `{module}`"
    yield f"::: {module}\n    options: {{members: false}}"
    passed_on: dict[str, list[str]] = {}
    for name, path in public_names(module).items():
        home = path.rpartition(".")[0]
        if home != module and home in public_modules():
            passed_on.setdefault(home, []).append(f"`{name}`")
        else:
            yield f"::: {path}\n    options: {{show_root_heading: true, show_root_toc_entry: true}}"
    for home, names in passed_on.items():
        yield f"From [`{home}`]({home}.md): {', '.join(names)}."


def _source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _declared(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return [str(name) for name in ast.literal_eval(node.value)]
    defined = (node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return [name for name in defined if not name.startswith("_")]
