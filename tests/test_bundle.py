"""A bundle: what goes in, the same bytes from the same inputs, written whole or not at all, and what is refused."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from bundle_cases import causal_decoder, files_of, toy_folder
from pydantic import ValidationError

from gatenorm_export.artifacts import replaced_folder
from gatenorm_export.bundling import BundleRequest, make_bundle, open_bundle
from gatenorm_export.bundling.engines import find_engines
from gatenorm_export.bundling.interface import read_interface
from gatenorm_export.bundling.licence import licence_of
from gatenorm_export.bundling.tokenizer import readable_tokenizer
from gatenorm_export.cli.main import main
from gatenorm_export.errors import ExitCode, GateNormError, InputError, OutputError, RefusedError
from gatenorm_export.graphs import graph_manifest
from gatenorm_export.records import BundleFile, EngineArtifact, PreparedGraph, PrunedGraph


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("toy"))


def test_everything_that_a_server_needs_is_in_it(pruned: Path, tmp_path: Path) -> None:
    manifest = make_bundle(BundleRequest(pruned, tmp_path / "b"))
    roles = {file.name: file.role for file in manifest.files}
    assert roles == {
        "config.json": "config",
        "generation_config.json": "config",
        "model.onnx": "graph",
        "model.onnx.data": "weights",
        "records/pruned.json": "record",
        "tokenizer.json": "tokenizer",
    }
    assert set(files_of(tmp_path / "b")) == {*roles, "manifest.json"}
    assert (manifest.task, manifest.n_layers, manifest.dropped, manifest.layer_map) == (
        "decoder", 3, (1,), {0: 0, 1: None, 2: 1},
    )  # fmt: skip
    assert (manifest.licence, manifest.licence_source) == ("mit", "license in README.md of the model")
    decoding = manifest.decoding
    assert decoding is not None
    assert [(c.layer, c.past, c.present, c.role, c.batch_axis, c.length_axis) for c in decoding.caches] == [
        (0, "past_0_key", "present_0_key", "key", 0, 1),
        (0, "past_0_value", "present_0_value", "value", 0, 1),
        (2, "past_1_key", "present_1_key", "key", 0, 1),
        (2, "past_1_value", "present_1_value", "value", 0, 1),
    ]
    assert (decoding.vocab_size, decoding.max_positions, decoding.eos_token_ids, decoding.bos_token_id) == (
        11,
        16,
        (1, 2),
        0,
    )
    # genai's caches have four dimensions; where it cannot load the folder, the bundle says so.
    reasons = {client.name: client.reason for client in manifest.clients}
    assert reasons["optimum"] == "config.json names no model_type, by which it chooses a class"
    assert "genai's plain decoder does not take this graph: its caches are not" in reasons["onnxruntime-genai"]
    assert open_bundle(tmp_path / "b").manifest == manifest
    text = (tmp_path / "b" / "manifest.json").read_text()
    assert str(pruned) not in text + (tmp_path / "b" / "records" / "pruned.json").read_text()


def test_the_same_inputs_give_the_same_bytes(pruned: Path, tmp_path: Path) -> None:
    """From another folder, into another folder, and again from the bundle itself."""
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(pruned, moved)
    make_bundle(BundleRequest(pruned, tmp_path / "first"))
    make_bundle(BundleRequest(moved, tmp_path / "second"))
    make_bundle(BundleRequest(tmp_path / "first", tmp_path / "third"))
    first = files_of(tmp_path / "first")
    assert first == files_of(tmp_path / "second") == files_of(tmp_path / "third")


def test_a_bundle_is_replaced_as_a_whole(pruned: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    make_bundle(BundleRequest(pruned, out))
    (out / "tokenizer.json").unlink()
    make_bundle(BundleRequest(pruned, out, tokenizer=False))
    assert "tokenizer.json" not in files_of(out)
    assert open_bundle(out)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_old_folder_stays_whole_where_writing_fails(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatenorm_export.artifacts._exchanged", lambda *_: False) if not exchanges else None
    target = tmp_path / "folder"
    with replaced_folder(target) as staging:
        (staging / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced_folder(target) as staging:
        (staging / "a").write_text("new")
        raise KeyboardInterrupt
    assert files_of(tmp_path) == {"folder/a": b"old"}
    with replaced_folder(target) as staging:
        (staging / "b").write_text("new")
    assert files_of(tmp_path) == {"folder/b": b"new"}


def test_a_full_disk_leaves_the_old_bundle(pruned: Path, tmp_path: Path) -> None:
    """A limit on file size stands in for the full disk."""
    make_bundle(BundleRequest(pruned, tmp_path / "b"))
    before = files_of(tmp_path)
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "from gatenorm_export.cli.main import main\n"
        f"sys.exit(main({['bundle', str(pruned), '-o', str(tmp_path / 'b'), '-q']!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stdout) == (ExitCode.OUTPUT, "")
    assert "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert files_of(tmp_path) == before


def test_what_is_no_bundle_is_not_replaced(pruned: Path, tmp_path: Path) -> None:
    def refused(out: Path, why: str, source: Path = pruned) -> None:
        before = files_of(tmp_path)
        with pytest.raises(OutputError, match=why):
            make_bundle(BundleRequest(source, out))
        assert files_of(tmp_path) == before

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(tmp_path / "mine", "is not empty, and no bundle to replace")
    refused(tmp_path / "mine" / "thesis.txt", "is a link or a file in the way")
    make_bundle(BundleRequest(pruned, tmp_path / "b"))
    (tmp_path / "link").symlink_to(tmp_path / "b")
    refused(tmp_path / "link", "is a link or a file in the way")
    (tmp_path / "b" / "notes.txt").write_text("of a user")
    refused(tmp_path / "b", "notes.txt was added to the bundle there, and would be lost")
    refused(tmp_path / "b" / "inner", "lies in the bundle .*, which it would touch")
    refused(tmp_path / "b" / "records" / "inner", "lies in the bundle .*, which it would touch")
    shutil.copytree(pruned, tmp_path / "run" / "pruned")
    refused(tmp_path / "run", "holds what is to be bundled", tmp_path / "run" / "pruned")
    refused(tmp_path / "run" / "pruned", "holds what is to be bundled", tmp_path / "run" / "pruned")
    (tmp_path / "empty").mkdir()
    assert make_bundle(BundleRequest(pruned, tmp_path / "empty"))


def spoiled(folder: Path, name: str, tmp_path: Path) -> Path:
    copy = tmp_path / name
    shutil.copytree(folder, copy)
    return copy


def test_missing_parts_are_one_clear_line(pruned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def complaint(source: Path, code: ExitCode, *options: str) -> str:
        found = main(["bundle", str(source), "-o", str(tmp_path / "out"), "-q", *options])
        captured = capfd.readouterr()
        assert (found, captured.out, captured.err.count("\n")) == (code, "", 1)
        assert not (tmp_path / "out").exists()
        return captured.err

    bare = spoiled(pruned, "bare", tmp_path)
    (bare / "tokenizer.json").unlink()
    assert "holds no tokenizer" in complaint(bare, ExitCode.BAD_INPUT)
    assert "holds no config.json" in complaint_without_configs(bare, complaint)
    broken = spoiled(pruned, "broken", tmp_path)
    (broken / "config.json").write_text("{")
    assert "config.json: not readable JSON" in complaint(broken, ExitCode.BAD_INPUT)
    changed = spoiled(pruned, "changed", tmp_path)
    (changed / "model.onnx.data").write_bytes(bytes((changed / "model.onnx.data").stat().st_size))
    assert "sha256 is not the one" in complaint(changed, ExitCode.BAD_INPUT)
    leading = spoiled(pruned, "leading", tmp_path)
    (leading / "tokenizer.json").unlink()
    (leading / "tokenizer.json").symlink_to("/etc/passwd")
    assert "outside its folder" in complaint(leading, ExitCode.BAD_INPUT)
    assert "no such ONNX file" in complaint(tmp_path / "nothing", ExitCode.BAD_INPUT)
    assert "nothing to serve" in complaint(pruned, ExitCode.BAD_INPUT, "--no-onnx")
    assert "no such engine" in complaint(pruned, ExitCode.BAD_INPUT, "--engine", "none.engine")
    assert "as a folder may be called" in complaint(pruned, ExitCode.USAGE, "--name", "../up")


def complaint_without_configs(folder: Path, complaint) -> str:
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink()
    return complaint(folder, ExitCode.BAD_INPUT, "--no-tokenizer")


def test_tokenizer_and_configs_may_come_from_beside(pruned: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(pruned / name, alone / name)
    manifest = make_bundle(BundleRequest(alone / "model.onnx", tmp_path / "b", beside=pruned, name="toy"))
    assert (manifest.name, manifest.licence, manifest.dropped, manifest.model) == ("toy", "mit", (1,), None)
    assert {"tokenizer.json", "config.json"} <= {file.name for file in manifest.files}


def test_the_bundled_graph_keeps_its_record(pruned: Path, tmp_path: Path) -> None:
    make_bundle(BundleRequest(pruned, tmp_path / "b"))
    record = graph_manifest(tmp_path / "b" / "model.onnx")
    assert isinstance(record, PrunedGraph)
    assert record.dropped == (1,)
    with pytest.raises(GateNormError, match="is in the way"):
        from gatenorm_export.pruning import prune_graph

        prune_graph(pruned.parent / "source" / "model.onnx", tmp_path / "b", layers=(0,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_layers": 10**6}, "says what no graph has (n_layers"),
        ({"n_layers": 4}, "number of layers is not the graph's"),
        ({"dropped": [0]}, "kept layers are not the graph's"),
    ],
)
def test_a_record_that_is_not_true_of_its_graph_is_no_bundle_s(
    change: dict, said: str, pruned: Path, tmp_path: Path
) -> None:
    folder = spoiled(pruned, "other", tmp_path)
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(record | change))
    with pytest.raises(InputError) as refused:
        make_bundle(BundleRequest(folder, tmp_path / "b"))
    assert said in str(refused.value)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../x", "a//b", "", ".", "a\\b", "C:x", "a/./b", "x\x00", "a/", "x. ", " x", "con?"]
)
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="is not the name of a file inside"):
        BundleFile(name=name, bytes=0, sha256="0" * 64, role="graph")


def test_data_outside_the_graphs_folder_is_refused(pruned: Path, tmp_path: Path) -> None:
    folder = spoiled(pruned, "leading", tmp_path)
    (folder / "manifest.json").unlink()
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../source/weights.bin"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(InputError, match="outside"):
        make_bundle(BundleRequest(folder, tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_a_graph_that_contradicts_itself_is_not_bundled(pruned: Path, tmp_path: Path) -> None:
    """A mask that does not hide what comes later: fed at once, tokens see the future, and on the cache they do not."""
    folder = spoiled(pruned, "seeing", tmp_path)
    (folder / "manifest.json").unlink()
    ir.save(causal_decoder(hides=False), folder / "model.onnx")
    with pytest.raises(RefusedError, match="fed at once instead of token by token it computes something else"):
        make_bundle(BundleRequest(folder, tmp_path / "b"))


def test_an_engine_has_its_own_types_and_its_own_graph(pruned: Path, tmp_path: Path) -> None:
    interface = read_interface(pruned / "model.onnx", "model.onnx")
    (tmp_path / "half.engine").write_bytes(b"vtrt engine")
    narrowed = tuple(spec.name for spec in (*interface.graph.inputs, *interface.graph.outputs) if "_key" in spec.name)
    record = engine_record(tmp_path / "half.engine", interface.graph.sha256, len(interface.graph.inputs), narrowed)
    record.save(tmp_path / "half.engine.json")
    (found,) = find_engines([tmp_path / "half.engine"], interface)
    dtypes = {spec.name: spec.dtype for spec in (*found.entry.inputs, *found.entry.outputs)}
    assert dtypes["past_0_key"] == dtypes["present_1_key"] == "float16"
    assert (dtypes["past_0_value"], dtypes["input_ids"], dtypes["logits"]) == ("float32", "int64", "float32")
    assert found.entry.file == "engines/half.engine"
    assert "same bytes" in found.entry.not_reproducible
    assert "/" not in found.record.parent_path
    manifest = make_bundle(BundleRequest(pruned, tmp_path / "b", engines=(tmp_path / "half.engine",)))
    assert manifest.engines == (found.entry,)
    reasons = {file.name for file in manifest.files if file.not_reproducible == found.entry.not_reproducible}
    assert reasons == {"engines/half.engine", "engines/half.engine.json"}
    assert manifest.reproducible_sha256 == make_bundle(BundleRequest(pruned, tmp_path / "plain")).reproducible_sha256
    with pytest.raises(RefusedError, match="two engines have this name"):
        find_engines([tmp_path / "half.engine"] * 2, interface)
    record.model_copy(update={"parent_sha256": "0" * 64}).save(tmp_path / "half.engine.json")
    with pytest.raises(RefusedError, match="was built from the graph 000000000000"):
        find_engines([tmp_path / "half.engine"], interface)


def engine_record(engine: Path, graph: str, n_inputs: int, narrowed: tuple[str, ...]) -> EngineArtifact:
    import hashlib

    prepared = PreparedGraph(
        graph="model.onnx", files=(), parent_sha256=graph, parent_path="/home/me/model.onnx", flavour="tensorrt-rtx",
        precision="fp16", changed=True, caches=narrowed,
    )  # fmt: skip
    return EngineArtifact(
        engine=engine.name, sha256=hashlib.sha256(engine.read_bytes()).hexdigest(), bytes=engine.stat().st_size,
        parent_sha256=graph, parent_path="/home/me/model.onnx", flavour="tensorrt-rtx", flavour_version="1.7.1",
        precision="fp16", prepared=prepared, profiles=(), n_network_layers=1, n_inputs=n_inputs, n_outputs=n_inputs - 1,
        build_seconds=1.0, built_on="a machine",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ('---\r\nlicense: "other"\r\nlicense_name: my-own\r\n---\r\n', "my-own"),
        ("license: mit\n", None),
        ("---\ntags: x\n---\nlicense: mit\n", None),
    ],
)
def test_the_licence_is_what_the_model_card_says(card: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card, newline="")
    found = licence_of(None, [tmp_path])
    assert (found[0] if found else None) == licence


def test_a_licence_file_without_a_card_is_pointed_to(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("Permission is hereby granted")
    assert licence_of(None, [tmp_path]) == ("see LICENSE", "the file LICENSE of the model")


def test_a_tokenizer_on_bytes_loses_the_steps_of_one_on_pieces(tmp_path: Path) -> None:
    last = {"type": "ByteLevel", "add_prefix_space": True}
    steps = [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Replace"}, last]
    content = {"pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "Sequence", "decoders": steps}, "model": {}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    changed = readable_tokenizer(path)
    assert isinstance(changed, bytes)
    assert json.loads(changed) == content | {"decoder": last}
    path.write_text(json.dumps(content | {"pre_tokenizer": {"type": "Metaspace"}}))
    assert readable_tokenizer(path) == path


def test_the_verb_speaks_json(pruned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", str(pruned), "-o", str(tmp_path / "b"), "--json", "-q"]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert result["folder"] == str(tmp_path / "b")
    assert result["seal"] == open_bundle(tmp_path / "b").manifest.seal
    assert filecmp.cmp(pruned / "model.onnx", tmp_path / "b" / "model.onnx", shallow=False)
