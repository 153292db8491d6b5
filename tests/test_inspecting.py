"""``gatenorm inspect``: every sublayer with what is known of it, and whatever was not matched with its reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from toy_graphs import WIDTH, toy_decoder

from gatenorm_export.cli.main import main
from gatenorm_export.errors import InputError
from gatenorm_export.inspecting import inspect_graph
from gatenorm_export.pruning import prune_graph

FORMS = {
    "pre-norm": "pre-norm",
    "post-norm": "post-norm",
    "parallel": "parallel",
    "sandwich": "sandwich",
    "scaled": "pre-norm",
    "decoys": "pre-norm",
}


def saved(folder: Path, block: str = "pre-norm") -> Path:
    path = folder / f"{block}.onnx"
    ir.save(toy_decoder(block), path)
    return path


@pytest.mark.parametrize(("block", "form"), FORMS.items())
def test_every_sublayer_is_described(block: str, form: str, tmp_path: Path) -> None:
    inspection = inspect_graph(saved(tmp_path, block))
    assert [entry.layer for entry in inspection.sublayers] == [0, 1, 2]
    for entry in inspection.sublayers:
        i = entry.layer
        assert entry.block == form
        assert (entry.kind, entry.operator, entry.residual, entry.branch) == ("self", "Softmax", "Add", None)
        assert entry.found_by == "structure: a softmax between two products"
        assert entry.past == (f"past_{i}_key", f"past_{i}_value")
        assert entry.present == (f"present_{i}_key", f"present_{i}_value")
        assert entry.head_dim == WIDTH
        # q, k, v, o and the bias of o; the norms share their weights with everything else in these graphs.
        assert entry.weight_bytes == 4 * (4 * WIDTH * WIDTH + WIDTH)
        assert entry.owns_past_length == (i == 0)
        assert entry.moves_past_length_to == ("past_1_key" if i == 0 else None)
        assert entry.refusal is None


def test_what_is_not_matched_is_listed_with_its_reason(tmp_path: Path) -> None:
    inspection = inspect_graph(saved(tmp_path, "decoys"))
    assert len(inspection.unmatched) == 3
    assert {entry.reason for entry in inspection.unmatched} == {"its input is no product of two activations"}


def test_what_cannot_be_removed_alone_says_so(tmp_path: Path) -> None:
    model = toy_decoder()
    model.graph.outputs.append(next(node.outputs[0] for node in model.graph if node.outputs[0].name == "probs1"))
    ir.save(model, tmp_path / "model.onnx")
    entries = inspect_graph(tmp_path / "model.onnx").sublayers
    assert [entry.refusal is None for entry in entries] == [True, False, True]
    assert "graph output probs1" in (entries[1].refusal or "")
    assert entries[1].weight_bytes is None


def test_a_pruned_graph_shows_its_original_numbers(tmp_path: Path) -> None:
    prune_graph(saved(tmp_path), tmp_path / "pruned.onnx", layers=(0,))
    inspection = inspect_graph(tmp_path / "pruned.onnx")
    assert inspection.n_layers == 3
    assert [(entry.layer, entry.past[0]) for entry in inspection.sublayers] == [(1, "past_0_key"), (2, "past_1_key")]


def test_the_verb_prints_a_table_or_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = saved(tmp_path, "decoys")
    assert main(["inspect", str(graph), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "3 sublayers of self-attention" in shown.out
    assert "the past length is read from past_0_key; without layer 0, from past_1_key" in shown.out
    assert "3 more resemble attention and were not matched" in shown.out
    assert shown.err == ""
    assert main(["inspect", str(graph), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["n_layers"], len(found["sublayers"])) == ("inspection", 3, 3)


def test_inspecting_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in ("torch", "transformers", "optimum", "onnxruntime"))
    code = f"import sys\n{blocked}from gatenorm_export.cli.main import main\nsys.exit(main(['inspect', sys.argv[1]]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved(tmp_path))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_metadata_that_contradicts_the_graph_is_one_clear_line(tmp_path: Path) -> None:
    model = toy_decoder()
    model.metadata_props.update({"gatenorm.layers": "[0, 5]", "gatenorm.n_layers": "6"})
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="does not describe its 3 attention sublayers"):
        inspect_graph(tmp_path / "model.onnx")
