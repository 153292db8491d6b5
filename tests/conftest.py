"""Shared fixtures: every tiny model exported once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from model_zoo import row

from gatenorm_export.exporting import export_model
from gatenorm_export.records import ExportedGraph, ModelSpec
from gatenorm_export.sources import resolve_model


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
