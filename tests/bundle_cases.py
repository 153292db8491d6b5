"""A small bundle without torch: a toy decoder with the files that lie beside one, and the ways to touch it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx import helper
from toy_graphs import toy_decoder

from gatenorm_export.bundling import BundleRequest, make_bundle
from gatenorm_export.bundling.opening import read_manifest, sealed
from gatenorm_export.pruning import prune_graph

Touch = Callable[[Path], object]


def toy_folder(folder: Path, *, layers: tuple[int, ...] = (1,), data: str | None = "weights.bin") -> Path:
    """A folder with a pruned toy decoder, its weights outside, tokenizer and configs."""
    source = folder / "source"
    source.mkdir(parents=True)
    ir.save(causal_decoder(), source / "model.onnx", external_data=data)
    config = {"vocab_size": 11, "max_position_embeddings": 16, "eos_token_id": 1, "num_attention_heads": 2}
    (source / "config.json").write_text(json.dumps(config))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "bos_token_id": 0}))
    (source / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}))
    (source / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A toy\n")
    prune_graph(source / "model.onnx", folder / "pruned", layers=layers)
    (folder / "pruned" / "README.md").write_text((source / "README.md").read_text())
    return folder / "pruned"


def toy_bundle(folder: Path) -> Path:
    """A bundle of it."""
    make_bundle(BundleRequest(toy_folder(folder), folder / "bundle"))
    return folder / "bundle"


def sealed_anew(bundle: Path, copy: Path, **fields: Any) -> Path:
    """A copy of a bundle whose manifest says something else, under a seal that fits."""
    shutil.copytree(bundle, copy)
    _, content = sealed(read_manifest(bundle).model_copy(update=fields))
    (copy / "manifest.json").write_bytes(content)
    return copy


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by name from there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def causal_decoder(*, hides: bool = True) -> ir.Model:
    """The toy decoder with tokens called as clients call them, and a mask that ``hides`` what comes later."""
    model = ir.to_proto(toy_decoder())
    graph = model.graph
    graph.input[0].name = "input_ids"
    place = next(index for index, node in enumerate(graph.node) if node.output[0] == "bias_mask") + 1
    graph.node[place - 1].output[0] = "padding_mask"
    for node in graph.node:
        node.input[:] = ["input_ids" if name == "tokens" else name for name in node.input]
    later = [
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Constant", [], ["unit"], value_int=1),
        helper.make_node("Squeeze", ["past_length"], ["start"]),
        helper.make_node("Squeeze", ["total_length"], ["end"]),
        helper.make_node("Range", ["start", "end", "unit"], ["rows"]),
        helper.make_node("Range", ["zero", "end", "unit"], ["columns"]),
        helper.make_node("Unsqueeze", ["rows", "one_index"], ["rows_down"]),
        helper.make_node("Less", ["rows_down", "columns"] if hides else ["columns", "zero"], ["later"]),
        helper.make_node("Cast", ["later"], ["later_float"], to=1),
        helper.make_node("Mul", ["later_float", "far"], ["later_mask"]),
        helper.make_node("Add", ["padding_mask", "later_mask"], ["bias_mask"]),
    ]
    nodes = [*graph.node[:place], *later, *graph.node[place:]]
    del graph.node[:]
    graph.node.extend(nodes)
    return ir.from_proto(model)


def _append(name: str) -> Touch:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b" ")


def _flip(name: str) -> Touch:
    def touch(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return touch


def _edit(old: str, new: str) -> Touch:
    def touch(folder: Path) -> None:
        path = folder / "manifest.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return touch


def _link(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "elsewhere.json")
    (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")


TOUCHES: dict[str, Touch] = {
    "a bit of the weights": _flip("model.onnx.data"),
    "a bit of the graph": _flip("model.onnx"),
    "a space behind a config": _append("config.json"),
    "a file removed": lambda folder: (folder / "tokenizer.json").unlink(),
    "a file added": lambda folder: (folder / "extra.txt").write_text("x"),
    "a hidden file in a folder": lambda folder: (folder / "records" / ".x").write_text("x"),
    "an empty folder": lambda folder: (folder / "more").mkdir(),
    "a name that is no text": lambda folder: (folder / os.fsdecode(b"\xff\xfe")).write_text("x"),
    "a file as a link": _link,
    "the licence": _edit('"licence": "mit"', '"licence": "gpl"'),
    "a layer of the map": _edit('"2": 1', '"2": 0'),
    "a cache name": _edit('"past": "', '"past": "x'),
    "an unknown field": _edit('"task":', '"more": 1, "task":'),
    "a space in the manifest": _append("manifest.json"),
    "a manifest cut off": lambda folder: (folder / "manifest.json").write_bytes(
        (folder / "manifest.json").read_bytes()[:900]
    ),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}
