"""Mutations by the kind of a file's content."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.fuzz.mutators.gguf import mutate_gguf
from benchmarks.fuzz.mutators.json_values import mutate_json
from benchmarks.fuzz.mutators.onnx_fields import mutate_onnx
from benchmarks.fuzz.mutators.pickles import mutate_pickle, mutate_torch_zip
from benchmarks.fuzz.mutators.plain_bytes import mutate_bytes
from benchmarks.fuzz.mutators.safetensors import mutate_safetensors
from benchmarks.fuzz.mutators.sealed import mutate_sealed

Mutator = Callable[[random.Random, bytes], tuple[bytes, str]]
"""Random numbers and a file's content -> other content, and in words what was changed."""

MUTATORS: dict[str, Mutator] = {
    "json": mutate_json,
    "safetensors": mutate_safetensors,
    "sealed": mutate_sealed,
    "gguf": mutate_gguf,
    "onnx": mutate_onnx,
    "torch zip": mutate_torch_zip,
    "pickle": mutate_pickle,
    "bytes": mutate_bytes,
}
