"""What a score must not depend on, over random checkpoints: how it is cut into files, ordered, stored, permuted."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gatenorm_export.records import LayerScores
from gatenorm_export.scoring import ScoreRequest, score_model
from gatenorm_export.sources import resolve_model

N_LAYERS = 3
KINDS = ("q", "k", "v", "o")
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


@st.composite
def models(draw: st.DrawFn) -> dict[str, int]:
    n_kv_heads = draw(st.integers(1, 3))
    return {
        "n_kv_heads": n_kv_heads,
        "n_heads": n_kv_heads * draw(st.integers(1, 3)),
        "head_dim": draw(st.sampled_from([2, 4, 8])),
        "d_model": draw(st.integers(4, 24)),
        "seed": draw(st.integers(0, 2**31)),
    }


def tensors_of(shape: dict[str, int], dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(shape["seed"])
    rows = {"q": shape["n_heads"], "k": shape["n_kv_heads"], "v": shape["n_kv_heads"], "o": shape["n_heads"]}
    found = {}
    for layer in range(N_LAYERS):
        for kind in KINDS:
            weight = rng.normal(size=(rows[kind] * shape["head_dim"], shape["d_model"])).astype(DTYPES[dtype])
            found[f"model.layers.{layer}.self_attn.{kind}_proj.weight"] = weight
    return found


def score(
    shape: dict[str, int], tensors: dict[str, np.ndarray], *, shards: list[list[str]] | None = None, **request: object
) -> LayerScores:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": N_LAYERS,
            "hidden_size": shape["d_model"],
            "num_attention_heads": shape["n_heads"],
            "num_key_value_heads": shape["n_kv_heads"],
            "head_dim": shape["head_dim"],
        }
        (folder / "config.json").write_text(json.dumps(config))
        if shards is None:
            save_file(tensors, folder / "model.safetensors")
        else:
            where = {}
            for number, names in enumerate(shards):
                save_file({name: tensors[name] for name in names}, folder / f"part-{number}.safetensors")
                where |= dict.fromkeys(names, f"part-{number}.safetensors")
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        return score_model(resolve_model(str(folder), whole=False), ScoreRequest(**request))


def values(scores: LayerScores) -> list[float]:
    return [entry.score for entry in scores.layers]


def definition(shape: dict[str, int], tensors: dict[str, np.ndarray]) -> list[float]:
    """Repeat every key head to the query heads of its group, form the d x d matrix, take its norm."""
    found = []
    for layer in range(N_LAYERS):
        query, key = (tensors[f"model.layers.{layer}.self_attn.{kind}_proj.weight"].astype(np.float64) for kind in "qk")
        heads = np.split(key, shape["n_kv_heads"])
        repeated = np.concatenate([head for head in heads for _ in range(shape["n_heads"] // shape["n_kv_heads"])])
        found.append(float(np.linalg.norm(query.T @ repeated)))
    return found


@settings(max_examples=25, deadline=None)
@given(shape=models(), dtype=st.sampled_from(sorted(DTYPES)))
def test_scores_are_the_definition_in_every_dtype(shape: dict[str, int], dtype: str) -> None:
    tensors = tensors_of(shape, dtype)
    found = score(shape, tensors)
    assert values(found) == pytest.approx(definition(shape, tensors), rel=1e-9)
    assert found.convention.checkpoint_dtype == {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]


@settings(max_examples=25, deadline=None)
@given(shape=models(), data=st.data())
def test_scores_and_digest_do_not_depend_on_sharding_or_order(shape: dict[str, int], data: st.DataObject) -> None:
    tensors = tensors_of(shape, "bfloat16")
    whole = score(shape, tensors)
    names = data.draw(st.permutations(sorted(tensors)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(names) - 1), max_size=4)))
    shards = [list(names[a:b]) for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    cut = score(shape, tensors, shards=shards)
    assert values(cut) == values(whole)
    assert cut.convention.source_digest == whole.convention.source_digest


@settings(max_examples=25, deadline=None)
@given(shape=models(), dtype=st.sampled_from(["bfloat16", "float16"]))
def test_scores_do_not_change_by_an_upcast(shape: dict[str, int], dtype: str) -> None:
    tensors = tensors_of(shape, dtype)
    wide = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    assert values(score(shape, wide)) == values(score(shape, tensors))


@settings(max_examples=25, deadline=None)
@given(shape=models(), seed=st.integers(0, 1000))
def test_per_head_scores_do_not_change_when_heads_are_permuted(shape: dict[str, int], seed: int) -> None:
    """Key heads in another order, each with its query heads, and the query heads of a group in another order."""
    rng, tensors = np.random.default_rng(seed), tensors_of(shape)
    moved = dict(tensors)
    groups, group = shape["n_kv_heads"], shape["n_heads"] // shape["n_kv_heads"]
    for layer in range(N_LAYERS):
        order = rng.permutation(groups)
        q, k = (f"model.layers.{layer}.self_attn.{kind}_proj.weight" for kind in "qk")
        query = tensors[q].reshape(groups, group, shape["head_dim"], -1)[order][:, rng.permutation(group)]
        moved[q] = np.ascontiguousarray(query.reshape(tensors[q].shape))
        key = tensors[k].reshape(groups, shape["head_dim"], -1)[order]
        moved[k] = np.ascontiguousarray(key.reshape(tensors[k].shape))
    before, after = (score(shape, each, variant="per-head") for each in (tensors, moved))
    assert values(after) == pytest.approx(values(before), rel=1e-9)
    assert before.convention.variant == "per-head"
    if shape["n_heads"] > 1:
        assert values(before) != pytest.approx(values(score(shape, tensors)), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(shape=models(), a=st.floats(-8, 8), b=st.floats(-8, 8), variant=st.sampled_from(["all-heads", "per-head"]))
def test_scores_scale_as_the_absolute_product(shape: dict[str, int], a: float, b: float, variant: str) -> None:
    tensors = tensors_of(shape)
    factors = {"q_proj": a, "k_proj": b}
    scaled = {
        name: (tensor * np.float32(factors.get(name.split(".")[-2], 1.0))).astype(np.float32)
        for name, tensor in tensors.items()
    }
    expected = [abs(a * b) * one for one in values(score(shape, tensors, variant=variant))]
    assert values(score(shape, scaled, variant=variant)) == pytest.approx(expected, rel=1e-5, abs=1e-30)
