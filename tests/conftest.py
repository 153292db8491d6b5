"""Shared fixtures: every tiny model exported once a session, and a Ray cluster."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documented import commands, run
from model_zoo import row

from gatenorm_export.exporting import export_model
from gatenorm_export.records import ExportedGraph, ModelSpec
from gatenorm_export.sources import resolve_model

_LONGEST = frozenset({"test_documented_commands.py", "test_cpp_smollm2.py"})
"""The files whose tests look at ``documented_folder``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is left alone with it in the end."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes each takes whole files, and one all those that share the folder which takes minutes."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "documented" if Path(file).name in _LONGEST else file

    return Files(config, log) if config.option.dist == "loadfile" else None


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[ModelSpec, Path, ExportedGraph]]:
    """Name of a row of the zoo -> its checkpoint, its exported graph and the export's record."""
    done: dict[str, tuple[ModelSpec, Path, ExportedGraph]] = {}

    def export(name: str) -> tuple[ModelSpec, Path, ExportedGraph]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            spec = resolve_model(str(row(name).save(folder / "checkpoint")))
            record = export_model(spec, folder / "base")
            done[name] = spec, folder / "base" / "model.onnx", record
        return done[name]

    return export


@pytest.fixture(scope="session", autouse=True)
def few_measurements() -> Iterator[None]:
    """No test asks how fast this machine is, and many measure something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatenorm_export.benching.ort_cpu.PROBE_SECONDS", 0.05)
        patch.setattr("gatenorm_export.comparing.latency.REPEATS", {"prefill": 2, "decode": 4})
        patch.setattr("gatenorm_export.comparing.latency.FORWARD_REPEATS", (2, 4))
        yield


@pytest.fixture(scope="session", autouse=True)
def settled_heap() -> None:
    """What is imported anyway is left out of garbage collection, which latency asks for at each loading of a model.

    With the objects of torch's and transformers' modules each collection takes a third of a second.
    """
    import torch  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two worker processes on 127.0.0.1 alone; the value is where they keep shipped files."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install gatenorm[ray]")
    shipped = tmp_path_factory.mktemp("shipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATENORM_SHIPPED", str(shipped))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=200_000_000,
        )
        yield shipped
        ray.shutdown()


@pytest.fixture(scope="session")
def documented_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which gatenorm's commands have been run, each with its exit code checked."""
    folder = tmp_path_factory.mktemp("documented")
    for page, command in commands():
        if not command.startswith("gatenorm "):
            continue
        done = run(["bash", "-c", command], folder)
        assert done.returncode == 0, f"{page}: {command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        if "--json" in command.split() and "compare" in command:
            (folder / "compare.json").write_text(done.stdout)
    return folder
