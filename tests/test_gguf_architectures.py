"""GGUF files of any architecture: llama.cpp's names, dimensions from the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatenorm_export.architectures import (
    ADAPTERS,
    GGUF_ARCHITECTURES,
    NamePatterns,
    Tower,
    towers_of,
    towers_of_gguf,
    towers_of_onnx,
)
from gatenorm_export.checkpoints import TensorInfo
from gatenorm_export.errors import InputError, RefusedError

gguf = pytest.importorskip("gguf")
D, HEADS, KV, SIZE, LAYERS = 32, 4, 2, 8, 3
FIELDS = {
    "block_count": LAYERS,
    "embedding_length": D,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV,
    "attention.key_length": SIZE,
}
MLA = {
    "block_count": LAYERS,
    "embedding_length": D,
    "attention.head_count": HEADS,
    "attention.head_count_kv": HEADS,
    "attention.q_lora_rank": 6,
    "attention.kv_lora_rank": 5,
    "attention.key_length": 10,
    "attention.value_length": 7,
    "rope.dimension_count": 4,
}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def written(path: Path, kind: str, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """Write a GGUF file, and read its metadata and the table of its tensors with gguf's own reader."""
    writer = gguf.GGUFWriter(path, kind)
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(f"{kind}.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"{kind}.{key}", value)
        else:
            writer.add_uint32(f"{kind}.{key}", value)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(path)
    infos = {
        tensor.name: TensorInfo(tensor.name, tuple(int(n) for n in tensor.shape[::-1]), "F32", 0, str(path))
        for tensor in reader.tensors
    }
    assert {name: info.shape for name, info in infos.items()} == {name: a.shape for name, a in arrays.items()}
    return {key: field.contents() for key, field in reader.fields.items()}, infos


def separate(layers: tuple[int, ...] = (0, 1, 2), kv: int = KV) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for layer in layers:
        arrays[f"blk.{layer}.attn_q.weight"] = random(HEADS * SIZE, D, seed=layer)
        arrays[f"blk.{layer}.attn_k.weight"] = random(kv * SIZE, D, seed=layer + 10)
        arrays[f"blk.{layer}.attn_norm.weight"] = random(D)
    return arrays


def split(tower: Tower, layer: int, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    entry = tower.layers[layer]
    return tower.split(entry, [arrays[name] for name in entry.names])


@pytest.mark.parametrize("kind", ["llama", "some-new-kind"])
def test_separate_weights_of_any_architecture(kind: str, tmp_path: Path) -> None:
    arrays = separate()
    (tower,) = towers_of_gguf(*written(tmp_path / "m.gguf", kind, FIELDS, arrays))
    assert (tower.name, tower.n_layers, tower.d_model) == ("", LAYERS, D)
    assert (tower.n_heads, tower.n_kv_heads, tower.head_dim) == (HEADS, KV, SIZE)
    assert (tower.guessed, tower.norm_offset, tower.layers[1].norm) == (None, 0.0, "blk.1.attn_norm.weight")
    query, key = split(tower, 1, arrays)
    assert query is arrays["blk.1.attn_q.weight"]
    assert key is arrays["blk.1.attn_k.weight"]


def test_fused_weights_are_stacked(tmp_path: Path) -> None:
    arrays = {f"blk.{layer}.attn_qkv.weight": random((HEADS + 2 * KV) * SIZE, D, seed=layer) for layer in range(LAYERS)}
    arrays["blk.1.attn_norm.weight"] = arrays["blk.1.attn_norm_2.weight"] = random(D)
    (tower,) = towers_of_gguf(*written(tmp_path / "m.gguf", "falcon", FIELDS, arrays))
    query, key = split(tower, 2, arrays)
    np.testing.assert_array_equal(query, arrays["blk.2.attn_qkv.weight"][:32])
    np.testing.assert_array_equal(key, arrays["blk.2.attn_qkv.weight"][32:48])
    # Falcon's second norm is the one before attention, and llama.cpp uses the first where there is no second.
    assert [layer.norm for layer in tower.layers] == [None, "blk.1.attn_norm_2.weight", None]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("absorbed", [False, True])
def test_latent_attention_gives_effective_weights(direct: bool, absorbed: bool, tmp_path: Path) -> None:
    nope, rope, value, rank = 6, 4, 7, 5
    arrays, fields = {}, dict(MLA)
    q_a, q_b = random(6, D, seed=1), random(HEADS * (nope + rope), 6, seed=2)
    kv_a, kv_b = random(rank + rope, D, seed=3), random(HEADS * (nope + value), rank, seed=4)
    if absorbed:
        fields |= {
            "attention.head_count_kv": 1,
            "attention.key_length": rank + rope,
            "attention.value_length": rank,
            "attention.key_length_mla": nope + rope,
            "attention.value_length_mla": value,
        }
    for layer in range(LAYERS):
        blk = f"blk.{layer}"
        if direct:
            arrays[f"{blk}.attn_q.weight"] = q_b @ q_a
        else:
            arrays |= {f"{blk}.attn_q_a.weight": q_a, f"{blk}.attn_q_b.weight": q_b}
        arrays[f"{blk}.attn_kv_a_mqa.weight"] = kv_a
        if absorbed:
            own = kv_b.reshape(HEADS, nope + value, rank)[:, :nope]
            arrays[f"{blk}.attn_k_b.weight"] = np.ascontiguousarray(own.transpose(0, 2, 1))
        else:
            arrays[f"{blk}.attn_kv_b.weight"] = kv_b
    (tower,) = towers_of_gguf(*written(tmp_path / "m.gguf", "deepseek2", fields, arrays))
    assert (tower.n_heads, tower.n_kv_heads, tower.head_dim) == (HEADS, HEADS, nope + rope)
    query, key = split(tower, 0, arrays)
    np.testing.assert_allclose(query, q_b @ q_a, rtol=1e-5, atol=1e-5)
    for head in range(HEADS):
        rows = kv_b[head * (nope + value) : head * (nope + value) + nope]
        expected = np.concatenate([rows @ kv_a[:rank], kv_a[rank:]])
        np.testing.assert_allclose(key[head * 10 : head * 10 + 10], expected, rtol=1e-5, atol=1e-5)
    joined_query, joined_key = split(tower.joined(), 0, arrays)
    np.testing.assert_allclose(joined_query.T @ joined_key, query.T @ key, rtol=1e-4, atol=1e-4)


def test_layers_without_attention_and_layers_of_other_sizes(tmp_path: Path) -> None:
    """A hybrid: a recurrence in block 1, whose input projection is called attn_qkv, and one key head in block 3."""
    arrays = {**separate((0, 2)), **separate((3,), kv=1)}
    arrays |= {"blk.1.attn_qkv.weight": random(5, D), "blk.1.ssm_conv1d.weight": random(4, 5), "blk.1.ssm_a": random(4)}
    fields = {**FIELDS, "block_count": 4, "attention.head_count_kv": [2, 0, 2, 1]}
    (tower,) = towers_of_gguf(*written(tmp_path / "m.gguf", "hybrid", fields, arrays))
    assert [layer.layer for layer in tower.layers] == [0, 2, 3]
    assert tower.n_layers == 4
    assert [split(tower, i, arrays)[1].shape for i in range(3)] == [(16, D), (16, D), (8, D)]
    assert [layer.n_kv_heads for layer in tower.layers] == [None, None, 1]


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    arrays = {**separate((0, 1, 2)), "blk.2.nextn.eh_proj.weight": random(D, 2 * D)}
    (tower,) = towers_of_gguf(*written(tmp_path / "m.gguf", "glm4moe", FIELDS, arrays))
    assert [layer.layer for layer in tower.layers] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": 0}, r"^there: k\.block_count is 0"),
        ({"embedding_length": "many"}, r"^there: k\.embedding_length is 'many'"),
        ({"attention.head_count": None}, r"^there: k\.attention\.head_count is None"),
        ({"attention.head_count_kv": 3}, "layer 0 has 4 query heads, which do not divide among 3"),
        ({"attention.head_count_kv": [2, 2]}, r"head_count_kv is \[2, 2\], where a number for each of 3 layers"),
        ({"attention.key_length": 4}, r"tensor blk\.0\.attn_q\.weight is \[32, 32\], but the config says \[16, 32\]"),
        ({"block_count": 4_000_000_000}, r"k\.block_count is 4000000000, but tensors blk\.3\.\* are missing"),
    ],
)
def test_senseless_metadata_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    fields = {key: value for key, value in {**FIELDS, **changes}.items() if value is not None}
    read, infos = written(tmp_path / "m.gguf", "k", fields, separate())
    with pytest.raises(InputError, match=message):
        towers_of_gguf(read, infos, where="there")


def test_other_names_are_refused_with_what_is_there(tmp_path: Path) -> None:
    read, infos = written(tmp_path / "m.gguf", "t5", FIELDS, {"enc.blk.0.attn_q.weight": random(4, 32)})
    with pytest.raises(RefusedError, match=r"t5 has no tensors blk\.N\.\*; it holds enc\.blk\.0"):
        towers_of_gguf(read, infos)
    read, infos = written(tmp_path / "n.gguf", "k", {**FIELDS, "block_count": 1}, {"blk.0.attn_norm.weight": random(D)})
    with pytest.raises(
        InputError, match=r"attn_qkv\.weight is missing; the first block with attention holds attn_norm"
    ):
        towers_of_gguf(read, infos)


def test_a_user_can_name_the_weights(tmp_path: Path) -> None:
    arrays = {name.replace("attn_q", "mine").replace("attn_k", "yours"): array for name, array in separate().items()}
    read, infos = written(tmp_path / "m.gguf", "k", FIELDS, arrays)
    patterns = NamePatterns("blk.{layer}.mine.weight", "blk.{layer}.yours.weight")
    (tower,) = towers_of_gguf(read, infos, patterns=patterns)
    assert (tower.n_layers, tower.n_kv_heads, tower.head_dim) == (LAYERS, KV, SIZE)
    assert towers_of("k", read, infos, patterns=patterns) == (tower,)


def test_every_gguf_name_has_an_adapter() -> None:
    assert set(GGUF_ARCHITECTURES.values()) <= set(ADAPTERS)
    assert set(GGUF_ARCHITECTURES) - {"mistral"} <= set(gguf.MODEL_ARCH_NAMES.values())


def test_an_onnx_graph_describes_its_towers() -> None:
    layers = [{"layer": i, "n_heads": 4, "n_kv_heads": 4 - 2 * (i == 3), "head_dim": 8, "d_model": D} for i in (0, 3)]
    described = {"name": "cross", "prefix": "cross", "n_layers": 4, "layers": layers, **layers[0]}
    infos = {
        (name := f"cross.{i}.{part}"): TensorInfo(name, (16 if (i, part) == (3, "key") else 32, D), "F32", 0, "g.onnx")
        for i in (0, 3)
        for part in ("query", "key")
    }
    (tower,) = towers_of_onnx({"towers": [described]}, infos)
    assert (tower.name, tower.n_layers, tower.n_heads, tower.n_kv_heads, tower.head_dim) == ("cross", 4, 4, 4, 8)
    assert [layer.names for layer in tower.layers] == [
        ("cross.0.query", "cross.0.key"),
        ("cross.3.query", "cross.3.key"),
    ]
    assert tower.layers[1].n_kv_heads == 2
    layers[1]["head_dim"] = 16
    with pytest.raises(RefusedError, match="layer 3 has heads of 16, others of 8"):
        towers_of_onnx({"towers": [described]}, infos)
