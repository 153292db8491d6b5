"""What a bundle says of optimum is what optimum does, which makes the first caches from config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clients import framework_tokens, optimum_tokens
from model_zoo import TinyModel

from gatenorm_export.bundling import BundleRequest, make_bundle
from gatenorm_export.bundling.interface import GraphInterface
from gatenorm_export.bundling.optimum_caches import optimum_reason
from gatenorm_export.cli.main import main
from gatenorm_export.exporting import export_model
from gatenorm_export.model_configs import ModelConfigs
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import BundleGraph, TensorSpec
from gatenorm_export.sources import resolve_model

PROMPT = [5, 9, 17]


def exported_olmo2(folder: Path, n_kv_heads: int) -> Path:
    model = TinyModel("olmo2", "Olmo2Config", "Olmo2ForCausalLM", n_heads=4, n_kv_heads=n_kv_heads, head_dim=16)
    model.save(folder / "model")
    export_model(resolve_model(str(folder / "model")), folder / "base")
    return folder / "base" / "model.onnx"


def optimum_of(folder: Path) -> str:
    clients = json.loads((folder / "manifest.json").read_text())["clients"]
    return next(str(client["reason"]) for client in clients if client["name"] == "optimum")


def test_a_decoder_whose_caches_have_every_head_generates(tmp_path: Path) -> None:
    prune_graph(exported_olmo2(tmp_path, 4), tmp_path / "pruned", layers=(1,))
    make_bundle(BundleRequest(tmp_path / "pruned", tmp_path / "bundle"))
    assert optimum_of(tmp_path / "bundle") == ""
    expected = framework_tokens(str(tmp_path / "model"), (1,), PROMPT, 6)
    assert optimum_tokens(tmp_path / "bundle", PROMPT, 6) == expected


def test_shared_heads_that_optimum_does_not_know_of_and_no_cache_at_all_are_reasons(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = exported_olmo2(tmp_path, 2)
    prune_graph(graph, tmp_path / "pruned", layers=(1,))
    assert main(["bundle", str(tmp_path / "pruned"), "-o", str(tmp_path / "bundle"), "-q"]) == 0
    reason = optimum_of(tmp_path / "bundle")
    assert reason.startswith(
        "of olmo2 it makes caches of 4 heads of 16 from config.json, and the graph's past_key_values"
    )
    assert "it makes caches of 4 heads of 16" in " ".join(capfd.readouterr().out.split())
    with pytest.raises(Exception, match=r"invalid dimensions for input: past_key_values"):
        optimum_tokens(tmp_path / "bundle", PROMPT, 6)
    prune_graph(graph, tmp_path / "bare", layers=(0, 1, 2, 3))
    make_bundle(BundleRequest(tmp_path / "bare", tmp_path / "all"))
    assert "no attention is left that keeps a cache, so its generate only works" in optimum_of(tmp_path / "all")
    with pytest.raises(ValueError, match="use_cache=True"):
        optimum_tokens(tmp_path / "all", PROMPT, 6)


def reason_of(config: dict[str, Any], *caches: tuple[Any, ...], names: tuple[str, ...] = ("key", "value")) -> str:
    """What is said of a graph with these shapes of caches, under names that end in ``names``."""
    inputs = [TensorSpec(name="input_ids", dtype="int64", shape=("b", "s"))]
    inputs += [
        TensorSpec(name=f"past_key_values.0.{name}", dtype="float32", shape=shape)
        for name, shape in zip(names, caches, strict=False)
    ]
    logits = TensorSpec(name="logits", dtype="float32", shape=("b", "s", 128))
    graph = BundleGraph(
        file="model.onnx", sha256="0" * 64, inputs=tuple(inputs), outputs=(logits,), precision="fp32", opset=18,
        contrib_operators=(),
    )  # fmt: skip
    return optimum_reason(GraphInterface(graph, {}, 1, (0,), ()), ModelConfigs(config, {}, {}))


def four(heads: int, size: int) -> tuple[Any, ...]:
    return ("b", heads, "p", size)


SIZES = {"hidden_size": 64, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "right", "wrong"),
    [
        # The sizes that optimum takes, and others that the same model could have.
        (SIZES | {"model_type": "llama", "num_key_value_heads": 2}, four(2, 16), four(4, 16)),
        (SIZES | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 24}, four(2, 16), four(2, 24)),
        (SIZES | {"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 24}, four(2, 16), four(2, 24)),
        (SIZES | {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 24}, four(1, 24), four(1, 16)),
        (SIZES | {"model_type": "glm4", "num_key_value_heads": 2}, four(4, 16), four(2, 16)),
        (SIZES | {"model_type": "falcon"}, four(1, 16), four(4, 16)),
        (SIZES | {"model_type": "falcon", "multi_query": False}, four(4, 16), four(1, 16)),
        (
            SIZES | {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
            four(2, 16),
            four(4, 16),
        ),
        ({"model_type": "gpt2", "n_embd": 64, "n_head": 4}, four(4, 16), four(4, 24)),
        ({"model_type": "gpt_bigcode", "n_embd": 64, "n_head": 4}, four(1, 16), four(4, 16)),
        ({"model_type": "bloom", "hidden_size": 64, "n_head": 4}, ("bh", 16, "p"), ("bh", 24, "p")),
        (
            {"model_type": "gemma3", "text_config": {"num_key_value_heads": 2, "head_dim": 24}},
            four(2, 24),
            four(2, 16),
        ),
    ],
)
def test_the_rules_are_optimums(config: dict[str, Any], right: tuple[Any, ...], wrong: tuple[Any, ...]) -> None:
    assert reason_of(config, right) == ""
    assert reason_of(config, wrong).startswith(f"of {config['model_type']} it makes caches of ")


def test_keys_and_values_of_their_own_sizes_and_fused_ones() -> None:
    deepseek = SIZES | {
        "model_type": "deepseek_v3", "num_key_value_heads": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    }  # fmt: skip
    assert reason_of(deepseek, four(4, 24), four(4, 16)) == ""
    assert "it makes caches of 4 heads of 16" in reason_of(deepseek, four(4, 24), four(4, 24))
    bigcode = {"model_type": "gpt_bigcode", "n_embd": 64, "n_head": 4}
    assert reason_of(bigcode, ("b", "p", 32), names=("key_value",)) == ""
    assert "it makes caches of 3 dimensions" in reason_of(bigcode, ("b", 1, "p", 32), names=("key_value",))


def test_what_a_config_does_not_tell_is_no_reason() -> None:
    assert reason_of({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}, four(2, 16)) == ""
    assert reason_of({"model_type": "olmo2"}, four(2, 16)) == ""
    assert "names no model_type" in reason_of(SIZES, four(4, 16))
    assert "the graph takes past_key_values.0.conv too" in reason_of(SIZES | {"model_type": "x"}, (3,), names=("conv",))
