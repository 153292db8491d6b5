"""Folders that hold an ONNX graph: inside one file, with data beside it, and pruned with its manifest."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.fuzz.inputs import Seed
from benchmarks.fuzz.seeds.decoders import LAYERS, decoder

if TYPE_CHECKING:
    import onnx

DATA = "model.onnx.data"
_TARGETS = ("inspect", "prune", "score graph", "read for a build", "prepare for an engine")
_GENAI = {
    "model": {
        "decoder": {
            "filename": "model.onnx",
            "num_hidden_layers": LAYERS,
            "inputs": {"past_key_names": "past_%d_key", "past_value_names": "past_%d_value"},
            "sliding_window": {"layers": [0, 1]},
        },
        "vocab_size": 11,
        "eos_token_id": [1],
    },
    "search": {"max_length": 16},
}
BESIDE = {
    "genai_config.json": json.dumps(_GENAI).encode(),
    "config.json": b'{"model_type": "llama", "num_hidden_layers": 2, "max_position_embeddings": 64}',
    "generation_config.json": b'{"eos_token_id": 1}',
    "tokenizer.json": b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
    "chat_template.jinja": b"{{ messages }}",
}


def save(model: onnx.ModelProto, folder: Path, *, data: bool) -> None:
    """Write ``model.onnx``, with ``data`` its weights in a file beside it."""
    import onnx

    path = str(folder / "model.onnx")
    onnx.save_model(model, path, save_as_external_data=data, location=DATA if data else None, size_threshold=200)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name relative to it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _kinds(files: dict[str, bytes]) -> dict[str, str]:
    suffixes = {".onnx": "onnx", ".json": "json", ".data": "bytes"}
    return {name: kind for name in files if (kind := suffixes.get(Path(name).suffix)) is not None}


def _graph(name: str, form: str, *, data: bool = False, beside: bool = False) -> Seed:
    with tempfile.TemporaryDirectory() as made:
        save(decoder(form), Path(made), data=data)
        files = files_of(Path(made)) | (BESIDE if beside else {})
    kinds = _kinds(files)
    if beside:
        kinds = {"genai_config.json": "json", "model.onnx": "onnx"}
    return Seed(name, files, kinds, ("prune",) if beside else _TARGETS, ("model.onnx",))


def _pruned() -> Seed:
    from gatenorm_export.pruning import prune_graph

    with tempfile.TemporaryDirectory() as made:
        base, out = Path(made) / "base", Path(made) / "out"
        base.mkdir()
        save(decoder("plain"), base, data=True)
        prune_graph(base / "model.onnx", out, layers=(1,))
        files = files_of(out)
    return Seed("pruned graph", files, _kinds(files), (*_TARGETS, "prune keeping names"), ("model.onnx",))


def graph_seeds() -> tuple[Seed, ...]:
    """Every seed of this file."""
    return (
        _graph("onnx", "plain"),
        _graph("onnx with data", "plain", data=True),
        _graph("onnx of functions", "functions"),
        _graph("onnx, fused", "fused"),
        _graph("onnx with configs", "plain", beside=True),
        _pruned(),
    )
