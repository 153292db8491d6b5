"""Bundles: a graph with data and configs under a sealed manifest, of a decoder and of a text encoder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.fuzz.inputs import Seed
from benchmarks.fuzz.seeds.checkpoints import pattern
from benchmarks.fuzz.seeds.decoders import decoder
from benchmarks.fuzz.seeds.graphs import BESIDE, files_of, save

if TYPE_CHECKING:
    import onnx


_ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (int64[b,s] input_ids, int64[b,s] attention_mask) => (float[b,s,4] last_hidden_state) {
  embedded = Gather (embedding, input_ids)
  shown = Cast <to=1> (attention_mask)
  two = Constant <value_ints=[2]> ()
  column = Unsqueeze (shown, two)
  last_hidden_state = Mul (embedded, column)
}
"""
_CONFIG = b'{"model_type": "bert", "vocab_size": 11, "max_position_embeddings": 32, "pad_token_id": 0}'


def _encoder() -> onnx.ModelProto:
    import onnx

    model = onnx.parser.parse_model(_ENCODER)
    model.graph.initializer.append(onnx.numpy_helper.from_array(pattern(11, 4), "embedding"))
    return model


def _bundled(model: onnx.ModelProto, beside: dict[str, bytes], *, tokenizer: bool) -> dict[str, bytes]:
    """The files of the bundle of a graph with these files beside it."""
    from gatenorm_export.bundling import BundleRequest, make_bundle

    with tempfile.TemporaryDirectory() as made:
        source, out = Path(made) / "source", Path(made) / "bundle"
        source.mkdir()
        save(model, source, data=True)
        for name, content in beside.items():
            (source / name).write_bytes(content)
        make_bundle(BundleRequest(source, out, tokenizer=tokenizer, name="a-bundle"))
        return files_of(out)


def bundle_seeds() -> tuple[Seed, ...]:
    """Every seed of this file."""
    files = _bundled(decoder("plain"), BESIDE, tokenizer=False)
    text = {"config.json": _CONFIG, "tokenizer.json": BESIDE["tokenizer.json"]}
    encoding = _bundled(_encoder(), text, tokenizer=True)
    kinds = {"manifest.json": "sealed", "config.json": "json", "model.onnx": "onnx"}
    return (
        Seed("bundle", files, kinds, ("open bundle", "verify bundle")),
        # Any other file that is changed is refused for its digest: behind that lies what the manifest alone decides.
        Seed("bundle, served", files, {"manifest.json": "sealed"}, ("serve bundle",)),
        Seed("bundle of an encoder, served", encoding, {"manifest.json": "sealed"}, ("serve bundle",)),
    )
