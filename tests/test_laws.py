"""The laws, over the one table of tiny models: each family is one row and inherits them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from model_zoo import N_LAYERS, NAMES

from gatenorm_export.comparing import check_faithfulness
from gatenorm_export.framework import load_framework_model
from gatenorm_export.pruning import describe_graph, prune_graph

SUBSETS = [*((layer,) for layer in range(N_LAYERS)), (1, 2), (0, N_LAYERS - 1), tuple(range(N_LAYERS))]

every_family = pytest.mark.parametrize("family", NAMES)


@every_family
def test_an_export_computes_what_the_framework_computes(family: str, exported) -> None:
    spec, graph, record = exported(family)
    assert 0 < record.max_abs_error <= record.tolerance
    assert {"config.json", "tokenizer.json", "model.onnx"} <= {file.name for file in record.files}
    assert describe_graph(graph).kept == tuple(range(spec.n_layers))


@every_family
def test_pruned_output_equals_the_framework_with_those_branches_zeroed(family: str, exported, tmp_path: Path) -> None:
    spec, graph, _ = exported(family)
    model, _ = load_framework_model(spec)
    for layers in SUBSETS:
        pruned = tmp_path / f"{'-'.join(map(str, layers))}.onnx"
        prune_graph(graph, pruned, layers=layers)
        result = check_faithfulness(pruned, spec, layers, model=model)
        assert result.passed, f"layers {layers}: {result.reason}"
        assert result.tokens_equal
        assert len(result.steps) >= 9
        assert result.max_abs_error is not None
        assert result.max_abs_error <= 1e-4


@every_family
def test_kept_and_dense_names_compute_the_same(family: str, exported, tmp_path: Path) -> None:
    spec, graph, _ = exported(family)
    for kv_names in ("dense", "keep"):
        record = prune_graph(graph, tmp_path / f"{kv_names}.onnx", layers=(0, 2), kv_names=kv_names)
        model = onnx.load(str(tmp_path / f"{kv_names}.onnx"))
        names = [entry.name for entry in (*model.graph.input, *model.graph.output)]
        numbers = (0, 1) if kv_names == "dense" else (1, 3)
        for prefix in ("past_key_values", "present"):
            for part in ("key", "value"):
                held = [name for name in names if name.startswith(prefix) and name.endswith(part)]
                assert held == [f"{prefix}.{number}.{part}" for number in numbers]
        assert [cache.layer for cache in record.kv_cache] == [1, 3]
        assert check_faithfulness(tmp_path / f"{kv_names}.onnx", spec, (0, 2)).passed


@every_family
def test_an_empty_plan_is_identity_and_twice_is_once(family: str, exported, tmp_path: Path) -> None:
    _, graph, _ = exported(family)
    # onnx_ir writes a file in its own canonical form, so identity is asked between two of its files.
    empty = prune_graph(graph, tmp_path / "empty.onnx", layers=())
    again = prune_graph(tmp_path / "empty.onnx", tmp_path / "again.onnx", layers=())
    assert empty.files[0].sha256 == again.files[0].sha256
    assert empty.before == empty.after
    once = prune_graph(graph, tmp_path / "once.onnx", layers=(0, 3))
    twice = prune_graph(tmp_path / "once.onnx", tmp_path / "twice.onnx", layers=(0, 3))
    assert once.files[0].sha256 == twice.files[0].sha256


@every_family
def test_a_wrong_surgery_fails(family: str, exported, tmp_path: Path) -> None:
    """The check must not pass what is wrong: another layer removed, nothing removed, a weight slightly off."""
    spec, graph, _ = exported(family)
    prune_graph(graph, tmp_path / "one.onnx", layers=(1,))
    assert not check_faithfulness(tmp_path / "one.onnx", spec, (2,)).passed
    assert not check_faithfulness(graph, spec, (1,)).passed
    model = onnx.load(str(graph))
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2 and 128 not in t.dims and t.dims[0] == 64)
    noise = np.random.default_rng(0).normal(1.0, 0.01, size=list(weight.dims))
    values = (onnx.numpy_helper.to_array(weight) * noise).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(tmp_path / "off.onnx"))
    result = check_faithfulness(tmp_path / "off.onnx", spec, ())
    assert result.passed is False
    assert "FAILED" in result.reason


def test_nothing_but_the_branch_goes(exported, tmp_path: Path) -> None:
    """Nodes and weights of what stays are the same as before, and those of the removed layer are gone."""
    _, graph, _ = exported("llama-gqa")
    record = prune_graph(graph, tmp_path / "pruned.onnx", layers=(2,), kv_names="keep")
    before, after = onnx.load(str(graph)), onnx.load(str(tmp_path / "pruned.onnx"))
    kept = {node.name: node for node in after.graph.node}
    gone = [node for node in before.graph.node if node.name not in kept]
    rewired = [
        node for node in before.graph.node if node.name in kept and list(node.input) != list(kept[node.name].input)
    ]
    assert record.before.n_nodes - record.after.n_nodes == len(gone)
    assert all(
        "layers.2/self_attn" in n.name
        or "layers.2/Add" in n.name
        or "layers.2/input" in n.name
        or n.op_type == "Constant"
        # It cast the sum; what stays of the sum is cast already.
        or n.name == "/model/layers.2/post_attention_layernorm/Cast"
        for n in gone
    )
    assert all("layers.2" in node.name or "layers.3" in node.name for node in rewired)
    # q 64x64, k and v 64x32 each, o 64x64, and the norm in front of them.
    assert record.before.n_parameters - record.after.n_parameters == 2 * 64 * 64 + 2 * 64 * 32 + 64
