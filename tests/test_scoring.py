"""Gate-Norm scores against an independent computation, and what they must not depend on."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_zoo import NAMES, row

from gatenorm_export.errors import InputError
from gatenorm_export.scoring import depth_trend, gate_norm, score_model
from gatenorm_export.scoring.gate_norm import exact_score
from gatenorm_export.sources import resolve_model


def reference_scores(model) -> list[float]:
    """The definition, word for word: repeat key heads, form the d x d matrix in float64, take its norm."""
    import torch

    scores = []
    for block in model.model.layers:
        attention = block.self_attn
        wq, wk = attention.q_proj.weight.double(), attention.k_proj.weight.double()
        heads = wk.reshape(-1, attention.head_dim, wk.shape[1])
        repeated = heads.repeat_interleave(attention.num_key_value_groups, dim=0).reshape(wq.shape)
        scores.append(torch.linalg.norm(wq.T @ repeated).item())
    return scores


def scores_of(folder: Path) -> list[float]:
    return [entry.score for entry in score_model(resolve_model(str(folder))).layers]


@pytest.mark.parametrize("family", NAMES)
def test_scores_are_the_definition(family: str, tmp_path: Path) -> None:
    expected = reference_scores(row(family).make())
    assert scores_of(row(family).save(tmp_path)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", NAMES)
def test_scores_do_not_depend_on_sharding_or_upcast(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    whole = scores_of(row(family).save(tmp_path / "whole", dtype="bfloat16"))
    sharded = row(family).save(tmp_path / "sharded", dtype="bfloat16", max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert scores_of(sharded) == whole
    upcast = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    upcast.save_pretrained(tmp_path / "upcast")
    assert scores_of(tmp_path / "upcast") == whole


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_the_rounding_of_a_group_sum_is_told_at_any_size(scale: float) -> None:
    """Squares of such weights leave float32, and with them did the bound: as infinity, or as none at all."""
    rng = np.random.default_rng(3)
    query, key = rng.normal(size=(8, 6)), rng.normal(size=(4, 6))
    usual = exact_score(query.astype(np.float32), key.astype(np.float32), head_dim=2)
    found = exact_score((query * scale).astype(np.float32), (key * scale).astype(np.float32), head_dim=2)
    assert found.rounding == pytest.approx(usual.rounding, rel=1e-5)


matrices = st.integers(0, 2**32 - 1).map(
    lambda seed: (
        np.random.default_rng(seed).normal(size=(8, 6)),
        np.random.default_rng(seed + 1).normal(size=(4, 6)),
    )
)


@settings(max_examples=50, deadline=None)
@given(pair=matrices, a=st.floats(-8, 8), b=st.floats(-8, 8))
def test_scores_scale_with_both_weights(pair, a: float, b: float) -> None:
    query, key = pair
    scaled = gate_norm(a * query, b * key, head_dim=2)
    assert scaled == pytest.approx(abs(a * b) * gate_norm(query, key, head_dim=2), rel=1e-6, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(pair=matrices, seed=st.integers(0, 1000))
def test_scores_do_not_change_when_heads_are_rotated_alike(pair, seed: int) -> None:
    """What llama.cpp's row order and any rotation inside a head do: the same matrix on every query and key head."""
    query, key = pair
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(2, 2)))[0]
    turned = [np.concatenate([rotation @ head for head in np.split(w, len(w) // 2)]) for w in (query, key)]
    assert gate_norm(*turned, head_dim=2) == pytest.approx(gate_norm(query, key, head_dim=2), rel=1e-9)


def test_the_wrong_product_would_be_noticed() -> None:
    """||Wq^T Wk|| of the transposed layout is another number."""
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(6, 6)), rng.normal(size=(6, 6))
    assert gate_norm(query, key, head_dim=2) == pytest.approx(np.linalg.norm(query.T @ key))
    assert gate_norm(query, key, head_dim=2) != pytest.approx(np.linalg.norm(query @ key.T))


def test_the_trend_is_spearmans() -> None:
    assert depth_trend([4.0, 3.0, 2.0, 1.0]).spearman_rho == pytest.approx(-1.0)
    assert depth_trend([1.0, 2.0, 3.0]).falls_with_depth is False
    assert depth_trend([4.0, 1.0, 3.0, 2.0]).spearman_rho == pytest.approx(-0.4)


def test_scoring_needs_no_torch(tmp_path: Path) -> None:
    row("llama-gqa").save(tmp_path)
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        f"from gatenorm_export.cli.main import main\nsys.exit(main(['score', {str(tmp_path)!r}, '--json', '--quiet']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [entry["layer"] for entry in result["layers"]] == [0, 1, 2, 3]
    assert result["schema"] == 1
    assert result["convention"]["grouped_query"]


def test_a_nan_weight_is_refused_with_file_and_tensor(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    row("llama-gqa").save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.self_attn.k_proj.weight"][3, 3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.2\.self_attn\.k_proj\.weight holds NaN"):
        scores_of(tmp_path)


def test_a_missing_or_misshapen_tensor_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    row("llama-gqa").save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file({**tensors, name: tensors[name][:32].copy()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"q_proj\.weight is \[32, 64\], but the config says \[64, 64\]"):
        scores_of(tmp_path)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.weight is missing"):
        scores_of(tmp_path)


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_a_truncated_safetensors_is_one_clear_line(tmp_path: Path, keep: float) -> None:
    row("llama-gqa").save(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=r"model\.safetensors: not readable safetensors"):
        scores_of(tmp_path)


def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    row("llama-gqa").save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(InputError, match="not readable safetensors"):
        scores_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, b"no gguf at all" * 99])
def test_a_damaged_gguf_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.gguf: not readable GGUF"):
        resolve_model(str(tmp_path / "model.gguf"))
