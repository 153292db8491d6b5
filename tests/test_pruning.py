"""The pruning stage on files: plans that fit or not, external data, determinism, what cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from toy_graphs import WIDTH, evaluate, toy_decoder, without_branches

from benchmarks.matrix import cells
from benchmarks.matrix.models import family
from benchmarks.matrix.producing import Request, produce
from gatenorm_export.errors import InputError, OutputError, RefusedError
from gatenorm_export.graphs import graph_manifest
from gatenorm_export.pruning import describe_graph, prune_graph
from gatenorm_export.records import PrunedGraph, PrunePlan


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "model.onnx"
    path.parent.mkdir()
    ir.save(toy_decoder(), path)
    (path.parent / "config.json").write_text("{}")
    (path.parent / "secrets.env").write_text("not ours")
    return path


def plan(n_layers: int = 3, drop: tuple[int, ...] = (0, 2)) -> PrunePlan:
    return PrunePlan(
        model_name="toy",
        model_digest="00",
        scores_sha256="00",
        n_layers=n_layers,
        policy="test",
        protect=(),
        drop=drop,
    )


def test_a_pruned_folder_holds_graph_side_files_and_manifest(graph: Path, tmp_path: Path) -> None:
    record = prune_graph(graph, tmp_path / "out", plan=plan())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "manifest.json", "model.onnx"]
    assert PrunedGraph.load(tmp_path / "out" / "manifest.json") == record
    assert record.dropped == (0, 2)
    assert record.layer_map == {0: None, 1: 0, 2: None}
    assert record.past_length_from == "past_0_key"
    assert [cache.past for cache in record.kv_cache] == [("past_0_key", "past_0_value")]
    assert (record.before.n_attention, record.after.n_attention) == (3, 1)
    assert record.after.kv_bytes_per_token == record.before.kv_bytes_per_token // 3 == 2 * WIDTH * 4
    expected = evaluate(without_branches(toy_decoder(), (0, 2)))
    pruned = evaluate(ir.load(tmp_path / "out" / "model.onnx"), seed=1)
    assert pruned["logits"].shape == expected["logits"].shape


def test_the_same_inputs_give_the_same_bytes(graph: Path, tmp_path: Path) -> None:
    first = prune_graph(graph, tmp_path / "a.onnx", layers=(1,))
    second = prune_graph(graph, tmp_path / "b.onnx", layers=(1,))
    assert first.files[0].sha256 == second.files[0].sha256
    assert (tmp_path / "a.manifest.json").is_file()


def test_external_data_stays_outside_and_shrinks(tmp_path: Path) -> None:
    source = tmp_path / "big" / "model.onnx"
    source.parent.mkdir()
    ir.save(toy_decoder(), source, external_data="model.onnx.data")
    prune_graph(source, tmp_path / "out", layers=(0, 1), kv_names="keep")
    data = tmp_path / "out" / "model.onnx.data"
    assert 0 < data.stat().st_size < (source.parent / "model.onnx.data").stat().st_size
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
    inline = ir.load(tmp_path / "out" / "model.onnx")
    expected = evaluate(without_branches(toy_decoder(), (0, 1)))
    for value in inline.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    np.testing.assert_allclose(evaluate(inline)["logits"], expected["logits"], rtol=1e-5, atol=1e-5)


def test_a_plan_for_another_depth_is_refused_with_both_counts(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="plan is for 30 attention layers, the graph has 3"):
        prune_graph(graph, tmp_path / "out", plan=plan(n_layers=30, drop=(29,)))
    assert not (tmp_path / "out").exists()


def test_pruning_onto_the_source_is_refused(graph: Path) -> None:
    before = graph.read_bytes()
    with pytest.raises(RefusedError, match="choose another output"):
        prune_graph(graph, graph.parent, layers=(0,))
    assert graph.read_bytes() == before


def test_somebody_elses_manifest_is_not_overwritten(graph: Path, tmp_path: Path) -> None:
    for content in ('{"name": "a web app"}', '{"kind": "run"}', "no json"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(OutputError, match="not the manifest of a graph"):
            prune_graph(graph, tmp_path, layers=(0,))
        assert (tmp_path / "manifest.json").read_text() == content


def test_an_edited_graph_no_longer_fits_its_manifest(graph: Path, tmp_path: Path) -> None:
    prune_graph(graph, tmp_path / "out", layers=(0,))
    assert graph_manifest(tmp_path / "out" / "model.onnx") is not None
    with (tmp_path / "out" / "model.onnx").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(InputError, match="size is not the one in"):
        prune_graph(tmp_path / "out" / "model.onnx", tmp_path / "again", layers=(1,))


def test_a_pruned_graph_keeps_its_layer_numbers(graph: Path, tmp_path: Path) -> None:
    prune_graph(graph, tmp_path / "once", layers=(1,))
    description = describe_graph(tmp_path / "once" / "model.onnx")
    assert (description.kept, description.dropped, description.n_layers) == ((0, 2), (1,), 3)
    record = prune_graph(tmp_path / "once" / "model.onnx", tmp_path / "twice", layers=(2,))
    assert record.dropped == (1, 2)
    assert record.layer_map == {0: 0, 1: None, 2: None}


def test_a_file_that_is_no_onnx_is_one_clear_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x07garbage that is no protobuf" * 9)
    with pytest.raises(InputError, match=r"broken\.onnx: not a readable ONNX file"):
        describe_graph(broken)


@pytest.mark.parametrize(
    ("location", "complaint"),
    [("../../elsewhere.bin", "outside the graph's folder"), ("absent.bin", "which is not there")],
)
def test_external_data_that_lies_elsewhere_is_refused(tmp_path: Path, location: str, complaint: str) -> None:
    model = toy_decoder()
    value = model.graph.initializers["head"]
    assert value.const_value is not None
    value.const_value = ir.ExternalTensor(
        location, 0, 4 * WIDTH * 11, ir.DataType.FLOAT, shape=ir.Shape([WIDTH, 11]), name="head", base_dir=""
    )
    (tmp_path / "model.onnx").write_bytes(ir.serde.serialize_model(model).SerializeToString())
    with pytest.raises(InputError, match=complaint):
        describe_graph(tmp_path / "model.onnx")


def test_truncated_external_data_is_refused(tmp_path: Path) -> None:
    ir.save(toy_decoder(), tmp_path / "model.onnx", external_data="model.onnx.data")
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"model\.onnx\.data: truncated, tensor"):
        describe_graph(tmp_path / "model.onnx")


# What belongs to scoring, exporting, running and building.
FOREIGN = (
    "torch",
    "transformers",
    "optimum",
    "onnxruntime",
    "polygraphy",
    "tensorrt",
    "tensorrt_rtx",
    "safetensors",
    "tokenizers",
    "gguf",
)


def prune_alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``gatenorm prune`` in a process that can import nothing of the above."""
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in FOREIGN)
    code = blocked + f"from gatenorm_export.cli.main import main\nsys.exit(main({['prune', *arguments]!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_pruning_needs_no_framework_no_runtime_and_no_checkpoint(graph: Path, tmp_path: Path) -> None:
    done = prune_alone(str(graph), "--layers", "0,2", "--json", "--quiet", "-o", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["dropped"] == [0, 2]
    (tmp_path / "plan.json").write_text(plan(n_layers=3, drop=(1,)).to_json())
    done = prune_alone(str(graph), "--plan", str(tmp_path / "plan.json"), "-q", "-o", str(tmp_path / "planned"))
    assert done.returncode == 0, done.stderr
    assert PrunedGraph.load(tmp_path / "planned" / "manifest.json").dropped == (1,)


def test_weights_can_be_shared_from_the_command_line(tmp_path: Path) -> None:
    ir.save(toy_decoder(), tmp_path / "model.onnx", external_data="model.onnx.data")
    small = tmp_path / "small.onnx"
    done = prune_alone(str(tmp_path), "--layers", "0-2", "--weights", "share", "-o", str(small))
    assert done.returncode == 0, done.stderr
    assert "no KV cache is left: optimum loads such a graph with use_cache=False" in " ".join(done.stdout.split())
    assert not small.with_name("small.onnx.data").exists()
    done = prune_alone(str(tmp_path), "--layers", "0", "--weights", "share", "-o", str(tmp_path / "elsewhere"))
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith(f"gatenorm: {tmp_path}")


def test_a_damaged_manifest_is_one_clear_line(graph: Path, tmp_path: Path) -> None:
    graph.with_name("manifest.json").write_text('{"kind": "pruned"}')
    with pytest.raises(InputError, match=r"manifest\.json: not a PrunedGraph record"):
        prune_graph(graph, tmp_path / "out", layers=(0,))


def test_weights_of_four_bits_are_counted_as_weights_and_not_as_bytes(tmp_path: Path) -> None:
    (plain,) = produce(Request(tmp_path, cells.exporter("optimum"), family("llama-gqa"))).values()
    (packed,) = produce(Request(tmp_path, cells.exporter("int4"), family("llama-gqa"))).values()
    whole, cut = (describe_graph(graph).facts for graph in (plain, packed))
    # Scales and zero points come on top.
    assert whole.n_parameters <= cut.n_parameters < 1.2 * whole.n_parameters
    assert cut.weight_bytes < whole.weight_bytes / 2
