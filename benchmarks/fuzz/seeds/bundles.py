"""A bundle: a graph with data and configs under a sealed manifest."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.fuzz.inputs import Seed
from benchmarks.fuzz.seeds.decoders import decoder
from benchmarks.fuzz.seeds.graphs import BESIDE, files_of, save


def bundle_seeds() -> tuple[Seed, ...]:
    """Every seed of this file."""
    from gatenorm_export.bundling import BundleRequest, make_bundle

    with tempfile.TemporaryDirectory() as made:
        source, out = Path(made) / "source", Path(made) / "bundle"
        source.mkdir()
        save(decoder("plain"), source, data=True)
        for name, content in BESIDE.items():
            (source / name).write_bytes(content)
        make_bundle(BundleRequest(source, out, tokenizer=False, name="a-bundle"))
        files = files_of(out)
    kinds = {"manifest.json": "sealed", "config.json": "json", "model.onnx": "onnx"}
    return (
        Seed("bundle", files, kinds, ("open bundle", "verify bundle")),
        # Any other file that is changed is refused for its digest: behind that lies what the manifest alone decides.
        Seed("bundle, served", files, {"manifest.json": "sealed"}, ("serve bundle",)),
    )
