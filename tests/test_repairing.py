"""What takes the place of attention: in the graph, against the framework, in its file, by the clock."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from calibration_cases import repair_graph
from toy_graphs import BLOCKS, evaluate, toy_decoder

from benchmarks.matrix.models import family
from gatenorm_export.cli.main import main
from gatenorm_export.comparing import check_faithfulness
from gatenorm_export.errors import InputError
from gatenorm_export.exporting import export_model
from gatenorm_export.pruning import describe_graph, prune_graph
from gatenorm_export.records import ComparisonReport
from gatenorm_export.repairs import LayerRepair, Repair, load_repairs, parse_repair, save_repairs
from gatenorm_export.sources import resolve_model
from graph_passes import StandIn, SurgeryRefused, find_attention, remove_attention

KINDS = ("bias", "mlp", "linear", "linear:8", "bias+mlp", "linear:8+mlp")


@pytest.mark.parametrize("block", BLOCKS)
def test_a_constant_stand_in_is_attention_whose_projection_is_its_bias(block: str) -> None:
    layers, rng = (0, 2), np.random.default_rng(3)
    biases = {layer: rng.normal(size=12).astype(np.float32) for layer in layers}
    reference = toy_decoder(block)
    for layer in layers:
        # Behind a scale or a norm what attention adds is not its projection's bias: there the parameters follow.
        if block == "sandwich":
            pytest.skip("what a norm adds for a constant is another constant; the framework test covers stand-ins")
        factor = 2.0 if block == "scaled" else 1.0
        for name, array in ((f"wo{layer}", np.zeros((12, 12))), (f"bo{layer}", factor * biases[layer])):
            reference.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    repaired = toy_decoder(block)
    stand_ins = {layer: StandIn(ir.tensor(bias)) for layer, bias in biases.items()}
    remove_attention(repaired, layers, kv_names="keep", stand_ins=stand_ins)
    expected = evaluate(reference)
    for name, array in evaluate(repaired).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert find_attention(repaired).layers == (1,)
    assert not {f"wo{layer}" for layer in layers} & set(repaired.graph.initializers)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_linear_stand_in_of_zeros_is_plain_removal(block: str) -> None:
    zeros = StandIn(ir.tensor(np.zeros(12, np.float32)), (ir.tensor(np.zeros((12, 12), np.float32)),))
    plain, repaired = toy_decoder(block), toy_decoder(block)
    remove_attention(plain, (0, 1, 2), kv_names="keep")
    remove_attention(repaired, (0, 1, 2), kv_names="keep", stand_ins={1: zeros})
    expected = evaluate(plain)
    for name, array in evaluate(repaired).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_stand_in_for_a_layer_that_stays_is_refused_before_any_edit() -> None:
    model = toy_decoder()
    n_nodes = len(model.graph)
    with pytest.raises(SurgeryRefused, match="layer 2 has a stand-in but is not removed"):
        remove_attention(model, (0,), stand_ins={2: StandIn(ir.tensor(np.zeros(12, np.float32)))})
    assert len(model.graph) == n_nodes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-gqa"])
def test_a_repaired_graph_is_faithful_to_the_framework_with_the_same_repair(
    name: str, kind: str, exported, tmp_path: Path
) -> None:
    spec, graph, _ = exported(name)
    drop = (1, 2)
    repaired = repair_graph(graph, tmp_path / "out", kind, drop)
    loaded = load_repairs(tmp_path / "out" / "repair.safetensors")
    assert check_faithfulness(tmp_path / "out" / "model.onnx", spec, drop, repairs=loaded).passed is True
    # Neither no repair nor another one passes.
    assert check_faithfulness(tmp_path / "out" / "model.onnx", spec, drop).passed is False
    wrong = {layer: _scaled(repair) for layer, repair in repaired.layers.items()}
    assert check_faithfulness(tmp_path / "out" / "model.onnx", spec, drop, repairs=wrong).passed is False


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("gpt2", "bloom", "gpt-neox") for kind in ("linear", "bias+mlp")),
        *((name, "linear") for name in ("gemma2", "olmo2", "glm4", "granite", "granitemoe")),
    ],
)
def test_families_that_are_built_otherwise_are_repaired_alike(name: str, kind: str, tmp_path: Path) -> None:
    """A transposed last matrix, a module that adds the residual itself, a parallel block, norms and factors
    behind attention."""
    family(name).make().save_pretrained(tmp_path / "checkpoint")
    spec = resolve_model(str(tmp_path / "checkpoint"))
    export_model(spec, tmp_path / "base")
    repair_graph(tmp_path / "base" / "model.onnx", tmp_path / "out", kind, (1, 2))
    loaded = load_repairs(tmp_path / "out" / "repair.safetensors")
    assert check_faithfulness(tmp_path / "out" / "model.onnx", spec, (1, 2), repairs=loaded).passed is True
    assert check_faithfulness(tmp_path / "out" / "model.onnx", spec, (1, 2)).passed is False


def _scaled(repair: LayerRepair) -> LayerRepair:
    down = repair.down * 1.05 if repair.down is not None else None
    return dataclasses.replace(repair, bias=repair.bias * 1.2 if repair.bias is not None else None, down=down)


def test_a_comparison_times_a_repair_against_the_same_removal_without_it(exported, tmp_path: Path) -> None:
    _, graph, _ = exported("llama-gqa")
    repair_graph(graph, tmp_path / "repaired", "linear", (1, 2))
    prune_graph(graph, tmp_path / "plain", layers=(1, 2))
    timed = {}
    for name in ("repaired", "plain"):
        command = ["compare", str(graph.parent), str(tmp_path / name), "-o", str(tmp_path / f"{name}.json"), "--quiet"]
        assert main(command) == 0
        timed[name] = ComparisonReport.load(tmp_path / f"{name}.json")
    assert timed["plain"].repair_latency is None
    cost = timed["repaired"].repair_latency
    assert cost is not None
    assert {row.phase for row in cost.rows} == {row.phase for row in timed["repaired"].latency.rows}
    assert "repair" in timed["repaired"].verdict
    assert f"{cost.decode_speedup:.3f}" in timed["repaired"].verdict
    assert sorted(path.name for path in (tmp_path / "repaired").iterdir() if path.name.startswith(".")) == []


def test_what_a_repair_costs_is_what_the_graph_has_more(exported, tmp_path: Path) -> None:
    _, graph, _ = exported("llama-gqa")
    plain = prune_graph(graph, tmp_path / "plain", layers=(1, 2))
    more = {}
    for kind in KINDS:
        repair_graph(graph, tmp_path / kind, kind, (1, 2))
        after = describe_graph(tmp_path / kind / "model.onnx").facts
        more[kind] = after.n_nodes - plain.after.n_nodes, after.n_parameters - plain.after.n_parameters
        record = json.loads((tmp_path / kind / "manifest.json").read_text())
        # The norm that attention read stays for a linear stand-in; it is kept, not added.
        norms = 2 * 64 if kind.startswith("linear") else 0
        assert record["repair"]["n_parameters"] + norms == more[kind][1]
        # Pruned again by the original numbers: a repaired graph is a graph like any other.
        again = prune_graph(tmp_path / kind / "model.onnx", tmp_path / f"{kind}-again", layers=(0, 1))
        assert again.dropped == (0, 1, 2)
    assert more["mlp"] == (0, 0)
    # One Add a layer, and the cast of the next norm: without a stand-in two casts of the stream meet and become one.
    assert more["bias"] == more["bias+mlp"] == (2 * 2, 2 * 64)
    assert more["linear:8"][1] == 2 * (2 * 64 * 8 + 64 + 64)


def test_a_repaired_graph_that_is_pruned_again_keeps_its_repair(exported, tmp_path: Path) -> None:
    spec, graph, _ = exported("llama-gqa")
    repair_graph(graph, tmp_path / "once", "linear:8", (1,))
    once = tmp_path / "once" / "model.onnx"
    bare = prune_graph(once, tmp_path / "bare", layers=(3,))
    both = repair_graph(once, tmp_path / "both", "mlp", (2,))
    assert both.layers.keys() == {2}
    for folder, dropped, repaired in (("bare", (1, 3), {1}), ("both", (1, 2), {1, 2})):
        loaded = load_repairs(tmp_path / folder / "repair.safetensors")
        assert loaded.keys() == repaired
        assert check_faithfulness(tmp_path / folder / "model.onnx", spec, dropped, repairs=loaded).passed is True
    assert bare.repair is not None
    assert bare.repair.kind == "linear:8"
    record = json.loads((tmp_path / "both" / "manifest.json").read_text())["repair"]
    assert record["kind"] == "linear:8, then mlp"
    assert [layer["layer"] for layer in record["layers"]] == [1, 2]


def test_repairs_survive_their_file_and_foreign_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    repair = LayerRepair(3, bias=np.ones(4, np.float32), factors=(np.eye(4, dtype=np.float32),) * 2)
    save_repairs({3: repair}, tmp_path / "r.safetensors")
    loaded = load_repairs(tmp_path / "r.safetensors")[3]
    np.testing.assert_array_equal(loaded.branch(np.ones((1, 4)), np.zeros((1, 4))), [[2.0] * 4])
    save_file({"layer.3.evil": np.ones(1, np.float32)}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=r"layer\.3\.evil"):
        load_repairs(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("text", ["lin", "linear:0", "bias:3", "mlp:2", "none+mlp", "mlp+bias", "bias+mlp:2", ""])
def test_a_repair_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write none, bias, mlp, linear"):
        parse_repair(text)
    assert parse_repair("linear:64") == Repair("linear", 64)


@pytest.mark.parametrize("text", ["none", *KINDS, "linear:8"])
def test_a_repair_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_repair(text)) == text
