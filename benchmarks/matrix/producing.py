"""Make the graphs of a cell, in this process or in the environment of the other transformers version.

    echo '[["dynamo-18", "llama-gqa", [0, 3], true]]' | python -m benchmarks.matrix.producing --cache DIR

Runs wherever the exporter's own packages are; needs nothing of gatenorm. A folder holds the result of one export:
``graphs.json`` with the files' names, or ``failure.txt`` with the reason, and for models ``exits.npz``, the parameters
that silence each attention sublayer.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.matrix.cells import Exporter, exporter
from benchmarks.matrix.models import Family, family
from benchmarks.matrix.silencing import read_exits, save_exits, silence_initializers

OTHER_PYTHON = "GATENORM_TRANSFORMERS5_PYTHON"
_REPOSITORY = Path(__file__).resolve().parents[2]
# Tiny models export in seconds; what takes longer hangs.
_TIME_LIMIT_S = 600


class ExportFailed(Exception):
    """The exporter did not make the graph; the message is its own."""


class EnvironmentMissing(Exception):
    """The exporter needs the other environment, and nobody said where that is."""


@dataclass(frozen=True)
class Request:
    """One export: ``silenced`` layers have zeroed attention exits.

    They are zeroed in the framework before the export or, which gives the same graph sooner, in a copy of the exported
    graph (``by_value``), where every exit is found among the initializers by its values.
    """

    cache: Path
    made_by: Exporter
    row: Family
    silenced: tuple[int, ...] = ()
    by_value: bool = True

    @property
    def folder(self) -> Path:
        """Where its graphs lie."""
        how = "silenced" if self.by_value else "exported-silenced"
        variant = "-".join([how, *map(str, self.silenced)]) if self.silenced else "base"
        return self.cache / self.made_by.name / self.row.name / variant

    @property
    def is_current(self) -> bool:
        """Whether its result is there; one counts while the rows of both tables are what they were."""
        mark = self.folder / "graphs.json"
        return mark.exists() and json.loads(mark.read_text()).get("rows") == _fingerprint(self)

    @property
    def base(self) -> Request:
        """The same without silence."""
        return replace(self, silenced=())

    @property
    def source(self) -> Request | None:
        """What the exporter transforms, where it transforms graphs."""
        if self.made_by.source is None:
            return None
        # Scales are kept by tensor name, and an export with zeroed weights names some tensors differently.
        by_value = self.by_value or self.made_by.calibrated
        return replace(self, made_by=exporter(self.made_by.source), by_value=by_value)

    @property
    def root(self) -> Request:
        """The export of the model that stands at the start."""
        return self if self.source is None else self.source.root


def produce(request: Request) -> dict[str, Path]:
    """The graphs of a cell by name, from the cache when they are there.

    Raises:
        ExportFailed: the exporter failed, now or when the cache was filled.
        EnvironmentMissing: the other environment is needed.
    """
    prepare([request])
    return read(request.folder)


def prepare(requests: Sequence[Request]) -> None:
    """Fill the cache; what needs the other environment is done there in one process, which loads its packages once.

    Raises:
        ExportFailed: that process ended early.
        EnvironmentMissing: the other environment is needed.
    """
    missing = [request for request in requests if not request.is_current]
    if not missing:
        return
    prepare([request.base for request in missing if request.silenced])
    left = [request for request in missing if not (request.silenced and request.by_value and _silence_base(request))]
    prepare([request.source for request in left if request.source is not None])
    elsewhere = []
    for request in left:
        if request.made_by.transformers == transformers_major():
            _produce_here(request)
        else:
            elsewhere.append(request)
    if elsewhere:
        _produce_there(elsewhere)


def read(folder: Path) -> dict[str, Path]:
    """The graphs in a folder that an export has filled.

    Raises:
        ExportFailed: it has filled it with a failure.
    """
    if (folder / "failure.txt").exists():
        raise ExportFailed((folder / "failure.txt").read_text())
    files: dict[str, str] = json.loads((folder / "graphs.json").read_text())["graphs"]
    return {name: folder / file for name, file in files.items()}


def transformers_major() -> int:
    """Major version of the transformers of this environment; 0 without."""
    try:
        return int(version("transformers").split(".")[0])
    except ModuleNotFoundError:
        return 0


def versions() -> dict[str, str]:
    """What is installed here of the packages that shape a graph."""
    found = {}
    for package in ("torch", "transformers", "optimum-onnx", "onnx", "onnxscript", "onnxruntime", "onnxruntime-genai"):
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return found


def stack_of(row: Family, graph_name: str) -> str:
    """Which stack of layers a graph of that name holds."""
    return "" if row.stacks == ("",) else graph_name.partition("_")[0]


def _write_record(request: Request, folder: Path, graphs: dict[str, Path]) -> None:
    """Say in the folder what is in it, last of all."""
    files = {name: str(path.relative_to(folder)) for name, path in graphs.items()}
    record = {"rows": _fingerprint(request), "graphs": files, "versions": versions()}
    (folder / "graphs.json").write_text(json.dumps(record, indent=2))


def _fingerprint(request: Request) -> str:
    rows = f"{request.made_by}\n{request.row}"
    return hashlib.sha256(
        (rows if request.source is None else rows + _fingerprint(request.source)).encode()
    ).hexdigest()


@contextlib.contextmanager
def _written_at_once(final: Path) -> Iterator[Path]:
    """A folder that gets its name when the block is left with ``graphs.json`` in it, and is dropped otherwise."""
    folder = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if (folder / "graphs.json").exists():
            shutil.rmtree(final, ignore_errors=True)
            folder.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _silence_base(request: Request) -> bool:
    """Write the silenced graphs as copies of the base ones; False when an exit is not found by its values.

    Raises:
        ExportFailed: there is no base graph.
    """
    base, exits_folder = request.base.folder, request.root.base.folder
    with _written_at_once(request.folder) as folder:
        graphs = {}
        for name, graph in read(base).items():
            graphs[name] = folder / graph.name
            exits = read_exits(exits_folder, stack_of(request.row, name), request.silenced)
            if not silence_initializers(graph, exits, graphs[name]):
                return False
        _write_record(request, folder, graphs)
    return True


def _produce_here(request: Request) -> None:
    with _written_at_once(request.folder) as folder:
        graphs: dict[str, Path] = {}
        try:
            graphs = _transform(request, folder) if request.source is not None else _export(request, folder)
        except Exception as error:
            # An exporter may fail with anything; the matrix reports it and goes on.
            (folder / "failure.txt").write_text(str(error) if isinstance(error, ExportFailed) else _one_line(error))
        _write_record(request, folder, graphs)


def _export(request: Request, folder: Path) -> dict[str, Path]:
    row = request.row
    model = row.make()
    save_exits(model, row, folder)
    for stack in row.stacks:
        row.silence(model, request.silenced, stack)
    result = request.made_by.function()(model, row, folder)
    return result if isinstance(result, dict) else {"": result}


def _transform(request: Request, folder: Path) -> dict[str, Path]:
    source = request.source
    assert source is not None
    graphs: dict[str, Path] = {}
    for name, graph in read(source.folder).items():
        extra = {"base": read(request.base.folder)[name]} if request.made_by.calibrated and request.silenced else {}
        graphs[name] = request.made_by.function()(graph, request.row, folder, **extra)
    return graphs


def _produce_there(requests: Sequence[Request]) -> None:
    """Run this module in the environment of the other version, once for all."""
    version_needed = requests[0].made_by.transformers
    python = os.environ.get(OTHER_PYTHON)
    if not python:
        raise EnvironmentMissing(f"needs transformers {version_needed}; set {OTHER_PYTHON}")
    orders = [[r.made_by.name, r.row.name, list(r.silenced), r.by_value] for r in requests]
    command = [python, "-m", "benchmarks.matrix.producing", "--cache", str(requests[0].cache.resolve())]
    environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY)}
    try:
        done = subprocess.run(
            command,
            cwd=_REPOSITORY,
            env=environment,
            input=json.dumps(orders),
            capture_output=True,
            text=True,
            timeout=_TIME_LIMIT_S * len(requests),
        )
    except subprocess.TimeoutExpired as error:
        raise ExportFailed(f"not done within {_TIME_LIMIT_S * len(requests)} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportFailed(f"the exporting process ended with {done.returncode}: {last}")


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def main() -> None:
    """Make the graphs that are ordered on stdin, in this environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    for made_by, row, silenced, by_value in json.load(sys.stdin):
        request = Request(args.cache, exporter(made_by), family(row), tuple(silenced), by_value)
        if request.made_by.transformers != transformers_major():
            sys.exit(f"{made_by} needs transformers {request.made_by.transformers}; here is {transformers_major()}")
        if not request.is_current:
            _produce_here(request)


if __name__ == "__main__":
    main()
