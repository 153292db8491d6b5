"""Inputs that once showed a defect, kept in one small file and run again before every fresh one."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fuzz.inputs import Input, Special
from benchmarks.fuzz.seeds import all_seeds

REGRESSIONS = Path(__file__).with_name("regressions.json")


def kept_inputs(path: Path) -> tuple[Input, ...]:
    """The kept inputs, in the order of the file."""
    if not path.is_file():
        return ()
    return tuple(_input(entry) for entry in json.loads(path.read_text()))


def remember(path: Path, inputs: Sequence[Input]) -> None:
    """Append inputs; one that is there already is not kept twice."""
    entries = json.loads(path.read_text()) if path.is_file() else []
    known = [json.dumps(entry) for entry in entries]
    entries += [entry for entry in map(_entry, inputs) if json.dumps(entry) not in known]
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")


def _entry(made: Input) -> dict[str, Any]:
    """Only files that differ from the seed's are kept; the others may change with the packages that make them."""
    seed = next(seed for seed in all_seeds() if seed.name == made.seed)
    changed = {name: data for name, data in made.files.items() if seed.files.get(name) != data}
    return {
        "seed": made.seed,
        "target": made.target,
        "edits": made.edits,
        "missing": [name for name in seed.files if name not in made.files],
        "files": {name: base64.b85encode(zlib.compress(data, 9)).decode() for name, data in changed.items()},
        "specials": {name: [one.kind, one.target, one.size] for name, one in made.specials.items()},
    }


def _input(entry: dict[str, Any]) -> Input:
    seed = next(seed for seed in all_seeds() if seed.name == entry["seed"])
    files = {name: data for name, data in seed.files.items() if name not in entry["missing"]}
    files |= {name: zlib.decompress(base64.b85decode(text)) for name, text in entry["files"].items()}
    specials = {name: Special(*values) for name, values in entry["specials"].items()}
    return Input(entry["seed"], entry["target"], files, specials, list(entry["edits"]))
