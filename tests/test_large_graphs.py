"""Graphs whose weights lie outside: sharing and compacting them, at any size, with no byte out of place."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_graphs import WIDTH, evaluate, toy_decoder, without_branches

from benchmarks.large_decoder import Dimensions, make_decoder
from gatenorm_export import graph_storage
from gatenorm_export.artifacts import sha256_of
from gatenorm_export.byte_ranges import ByteRange, copy_ranges, data_bytes
from gatenorm_export.errors import InputError, OutputError, RefusedError
from gatenorm_export.graphs import external_tensors, graph_manifest, load_graph
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import PrunedGraph

LARGE = 1024 * 1024


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A toy decoder with its weights in two data files; two names share one range."""
    folder = tmp_path / "source"
    folder.mkdir()
    model = toy_decoder()
    model.graph.initializers["w20"].const_value = model.graph.initializers["w10"].const_value
    ends = {"first.bin": 0, "second.bin": 40}
    places: dict[int, tuple[str, int]] = {}
    content = {name: bytearray(end) for name, end in ends.items()}
    for index, value in enumerate(model.graph.initializers.values()):
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes < 256:
            continue
        name = "first.bin" if index % 2 else "second.bin"
        if id(tensor) not in places:
            places[id(tensor)] = name, len(content[name])
            content[name] += tensor.tobytes()
        location, offset = places[id(tensor)]
        value.const_value = ir.ExternalTensor(
            location, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or ""
        )
    for name, data in content.items():
        (folder / name).write_bytes(data)
    ir.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def inline(path: Path) -> ir.Model:
    """The model with every tensor in memory."""
    model = ir.load(path)
    for tensor, replace in external_tensors(model):
        replace(ir.tensor(tensor.numpy().copy(), name=tensor.name))
    return model


def loads_everywhere(path: Path) -> None:
    onnx.checker.check_model(str(path))
    onnx.load(str(path))
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def expected(layers: tuple[int, ...]) -> np.ndarray:
    model = toy_decoder()
    model.graph.initializers["w20"].const_value = model.graph.initializers["w10"].const_value
    return evaluate(without_branches(model, layers))["logits"]


def test_compacting_packs_several_files_into_one_and_shared_ranges_once(graph: Path, tmp_path: Path) -> None:
    record = prune_graph(graph, tmp_path / "out", layers=(1,), kv_names="keep")
    pruned = tmp_path / "out" / "model.onnx"
    loads_everywhere(pruned)
    tensors = {tensor.name: tensor for tensor, _ in external_tensors(ir.load(pruned))}
    assert {tensor.location for tensor in tensors.values()} == {"model.onnx.data"}
    assert tensors["w10"].offset == tensors["w20"].offset
    assert len({tensor.offset for tensor in tensors.values()}) == len(tensors) - 1
    assert all((tensor.offset or 0) % 64 == 0 for tensor in tensors.values())
    assert "wq1" not in tensors
    np.testing.assert_allclose(evaluate(inline(pruned))["logits"], expected((1,)), rtol=1e-5, atol=1e-5)
    assert (record.weights, record.shared) == ("compact", ())
    assert all(file.sha256 == sha256_of(tmp_path / "out" / file.name) for file in record.files)


def test_compacting_is_deterministic_and_repeatable(graph: Path, tmp_path: Path) -> None:
    first = prune_graph(graph, tmp_path / "a" / "x.onnx", layers=(1,))
    second = prune_graph(graph, tmp_path / "b" / "x.onnx", layers=(1,))
    again = prune_graph(tmp_path / "a" / "x.onnx", tmp_path / "c" / "x.onnx", layers=(1,))
    assert first.files == second.files == again.files


@pytest.mark.parametrize("folder", [".", ".."], ids=["the same folder", "a folder above"])
def test_sharing_writes_the_graph_alone(graph: Path, folder: str) -> None:
    before = {path.name: path.read_bytes() for path in graph.parent.iterdir()}
    place = graph.parent / folder / "small.onnx"
    record = prune_graph(graph, place, layers=(0, 1), kv_names="keep", weights="share")
    loads_everywhere(place.resolve())
    np.testing.assert_allclose(evaluate(inline(place.resolve()))["logits"], expected((0, 1)), rtol=1e-5, atol=1e-5)
    assert [file.name for file in record.files] == ["small.onnx"]
    prefix = "" if folder == "." else "source/"
    assert [file.name for file in record.shared] == [f"{prefix}first.bin", f"{prefix}second.bin"]
    assert all(file.sha256 is None for file in record.shared)
    assert PrunedGraph.load(place.with_name("small.manifest.json")) == record
    assert all((graph.parent / name).read_bytes() == content for name, content in before.items())
    assert all((graph.parent / name).stat().st_nlink == 1 for name in before)


def test_sharing_equals_compacting(graph: Path, tmp_path: Path) -> None:
    prune_graph(graph, graph.with_name("small.onnx"), layers=(2,), weights="share")
    prune_graph(graph, tmp_path / "out", layers=(2,), weights="compact")
    prune_graph(graph.with_name("small.onnx"), tmp_path / "later", layers=(), weights="compact")
    first, second, third = (
        {tensor.name: tensor.tobytes() for tensor, _ in external_tensors(ir.load(path))}
        for path in (graph.with_name("small.onnx"), tmp_path / "out/model.onnx", tmp_path / "later/model.onnx")
    )
    assert first == second == third


def test_sharing_from_elsewhere_is_refused_with_the_reason(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RefusedError, match=r"ONNX loaders refuse data outside .* write it into .* or use --weights comp"
    ):
        prune_graph(graph, tmp_path / "other", layers=(1,), weights="share")
    assert not (tmp_path / "other").exists()


def test_a_graph_that_keeps_its_weights_inside_has_nothing_to_share(tmp_path: Path) -> None:
    ir.save(toy_decoder(), tmp_path / "model.onnx")
    with pytest.raises(RefusedError, match="there is no data file to share, use --weights compact"):
        prune_graph(tmp_path / "model.onnx", tmp_path / "small.onnx", layers=(1,), weights="share")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_shared_files_keep_the_digests_that_the_parent_has_of_them(graph: Path, tmp_path: Path) -> None:
    parent = prune_graph(graph, tmp_path / "out", layers=(1,))
    digest = next(file.sha256 for file in parent.files if file.name == "model.onnx.data")
    child = prune_graph(tmp_path / "out/model.onnx", tmp_path / "out/less.onnx", layers=(2,), weights="share")
    grandchild = prune_graph(tmp_path / "out/less.onnx", tmp_path / "out/least.onnx", layers=(0,), weights="share")
    assert digest is not None
    assert [file.sha256 for file in (*child.shared, *grandchild.shared)] == [digest, digest]


def test_what_comparing_and_building_rely_on_is_checked(graph: Path, tmp_path: Path) -> None:
    prune_graph(graph, tmp_path / "out", layers=(1,))
    less = tmp_path / "out/less.onnx"
    prune_graph(tmp_path / "out/model.onnx", less, layers=(2,), weights="share")
    data = tmp_path / "out/model.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for pruned in (tmp_path / "out/model.onnx", less):
        assert graph_manifest(pruned, digest_data=False) is not None
        with pytest.raises(InputError, match=r"model\.onnx\.data: its sha256 is not the one in"):
            graph_manifest(pruned)
    data.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=r"model\.onnx\.data: its size is not the one in"):
        prune_graph(less, tmp_path / "again", layers=(0,))
    data.unlink()
    with pytest.raises(InputError, match=r"model\.onnx\.data: is not there"):
        prune_graph(less, tmp_path / "again", layers=(0,))
    assert not (tmp_path / "again").exists()


def test_an_output_that_would_replace_the_sources_data_is_refused(graph: Path) -> None:
    renamed = graph.parent / "small.onnx.data"
    model = ir.load(graph)
    for tensor, replace in external_tensors(model):
        if tensor.location == "first.bin":
            moved = ir.ExternalTensor(
                renamed.name, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name
            )
            replace(moved)
    (graph.parent / "first.bin").rename(renamed)
    ir.save(model, graph)
    with pytest.raises(RefusedError, match="a data file of the graph to be pruned; choose another output"):
        prune_graph(graph, graph.parent / "small.onnx", layers=(1,))


def test_a_small_disk_is_one_clear_line_before_anything_is_written(graph: Path, tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(graph_storage.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(OutputError, match=r"needs 0\.00 GB, 0\.00 GB are free; make room"):
        prune_graph(graph, tmp_path / "new" / "out", layers=(1,))
    assert not (tmp_path / "new" / "out").exists()


def test_a_copy_that_fails_leaves_nothing(graph: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("stays")
    monkeypatch.setattr(graph_storage, "copy_ranges", full)
    with pytest.raises(OutputError, match="No space left on device"):
        prune_graph(graph, tmp_path / "out", layers=(1,))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_hard_linked_output_is_replaced_and_its_other_name_kept(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mine = tmp_path / "mine.bin"
    mine.write_bytes(b"precious")
    for name in ("model.onnx", "model.onnx.data"):
        os.link(mine, tmp_path / "out" / name)
    prune_graph(graph, tmp_path / "out", layers=(1,))
    assert mine.read_bytes() == b"precious"
    loads_everywhere(tmp_path / "out" / "model.onnx")


def test_hard_linked_data_is_refused_in_one_line(graph: Path, tmp_path: Path) -> None:
    os.link(graph.parent / "first.bin", tmp_path / "twin.bin")
    with pytest.raises(InputError, match=r"first\.bin: has 2 hard links, which ONNX loaders take for an attack"):
        prune_graph(graph, tmp_path / "out", layers=(1,))


@pytest.fixture
def hub(graph: Path, tmp_path: Path) -> Path:
    """The graph as a model hub's cache keeps it: every file a symbolic link into a store of blobs."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in graph.parent.iterdir():
        shutil.move(path, blobs / f"blob-of-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob-of-{path.name}")
    return snapshot / "model.onnx"


def test_a_hubs_cache_can_be_compacted_but_not_shared(hub: Path, tmp_path: Path) -> None:
    onnxruntime.InferenceSession(str(hub), providers=["CPUExecutionProvider"])
    prune_graph(hub, tmp_path / "out", layers=(0, 2), kv_names="keep")
    loads_everywhere(tmp_path / "out" / "model.onnx")
    logits = evaluate(inline(tmp_path / "out" / "model.onnx"))["logits"]
    np.testing.assert_allclose(logits, expected((0, 2)), rtol=1e-5, atol=1e-5)
    with pytest.raises(RefusedError, match="ONNX loaders refuse data outside a graph's folder"):
        prune_graph(hub, hub.with_name("small.onnx"), layers=(0,), weights="share")


def test_a_link_that_leads_anywhere_else_is_refused(graph: Path, tmp_path: Path) -> None:
    shutil.move(graph.parent / "first.bin", tmp_path / "secret.bin")
    (graph.parent / "first.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(InputError, match=r"lies at first\.bin, outside the graph's folder; refused"):
        load_graph(graph)


def test_tensors_of_branches_and_attributes_are_moved_too(tmp_path: Path) -> None:
    model = ir.from_onnx_text("""
<ir_version: 8, opset_import: ["" : 17]>
g (bool[1] which, float[2] x) => (float[2] y) {
  chosen = If (which) <
    then_branch = first () => (float[2] a) <float[2] w = {1.0, 2.0}> { a = Add (x, w) },
    else_branch = second () => (float[2] b) { c = Constant <value = float[2] {3.0, 4.0}> ()  b = Add (x, c) }
  >
  y = Identity (chosen)
}""")
    (tmp_path / "weights.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    branches = {attribute.name: attribute.as_graph() for attribute in next(iter(model.graph)).attributes.values()}

    def outside(offset: int, name: str) -> ir.ExternalTensor:
        return ir.ExternalTensor("weights.bin", offset, 8, ir.DataType.FLOAT, shape=ir.Shape([2]), name=name)

    branches["then_branch"].initializers["w"].const_value = outside(16, "w")
    constant = next(iter(branches["else_branch"]))
    constant.attributes["value"] = ir.AttrTensor("value", outside(40, "c"))
    ir.save(model, tmp_path / "model.onnx")
    loaded = load_graph(tmp_path / "model.onnx")
    graph_storage.compact_weights(loaded, tmp_path / "new.data")
    ir.save(loaded, tmp_path / "new.onnx")
    moved = [tensor for tensor, _ in external_tensors(ir.load(tmp_path / "new.onnx"))]
    assert {tensor.location for tensor in moved} == {"new.data"}
    assert sorted(tensor.numpy().tolist() for tensor in moved) == [[4.0, 5.0], [10.0, 11.0]]


def test_a_graph_beyond_protobufs_limit_spills_into_a_data_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(graph_storage, "_INLINE_LIMIT_BYTES", 1000)
    monkeypatch.setattr(graph_storage, "_SPILL_FROM_BYTES", 4 * WIDTH * WIDTH)
    ir.save(toy_decoder(), tmp_path / "model.onnx")
    prune_graph(tmp_path / "model.onnx", tmp_path / "out", layers=(1,), kv_names="keep")
    tensors = [tensor for tensor, _ in external_tensors(ir.load(tmp_path / "out/model.onnx"))]
    assert {tensor.nbytes >= 4 * WIDTH * WIDTH for tensor in tensors} == {True}
    logits = evaluate(inline(tmp_path / "out/model.onnx"))["logits"]
    np.testing.assert_allclose(logits, evaluate(without_branches(toy_decoder(), (1,)))["logits"], rtol=1e-5, atol=1e-5)


def _sparse(path: Path, parts: dict[int, bytes], size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in parts.items():
            file.seek(offset)
            file.write(content)


@pytest.mark.parametrize(
    "without", [(), ("copy_file_range",), ("SEEK_DATA",), ("copy_file_range", "SEEK_DATA")], ids=str
)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pieces=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 60_000), st.integers(0, 9000), st.integers(0, 5000))),
)
def test_ranges_arrive_where_they_should(without, seed: int, pieces, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("ranges")
    rng = np.random.default_rng(seed)
    sources = [folder / "a", folder / "b"]
    for path in sources:
        _sparse(path, {int(at): rng.bytes(3000) for at in rng.integers(0, 70_000, 3)}, 80_000)
    expected, end, ranges = bytearray(), 0, []
    for source, offset, length, gap in pieces:
        expected += bytes(gap) + sources[source].read_bytes()[offset : offset + length]
        ranges.append(ByteRange(sources[source], offset, length, end + gap))
        end = ranges[-1].end
    with pytest.MonkeyPatch.context() as patch:
        for name in without:
            patch.delattr(os, name)
        assert 0 <= data_bytes(ranges) <= sum(piece.length for piece in ranges)
        copy_ranges(ranges, folder / "new")
    assert (folder / "new").read_bytes() == bytes(expected)


def test_a_kernel_that_cannot_copy_between_two_disks_is_no_obstacle(tmp_path: Path, monkeypatch) -> None:
    def refuse(*arguments: int) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    (tmp_path / "source").write_bytes(os.urandom(10_000_000))
    monkeypatch.setattr(os, "copy_file_range", refuse)
    copy_ranges([ByteRange(tmp_path / "source", 5, 9_000_000, 0)], tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == (tmp_path / "source").read_bytes()[5:9_000_005]


def test_a_source_that_cannot_be_read_is_named(graph: Path, tmp_path: Path, monkeypatch) -> None:
    allowed = Path.open

    def deny(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".bin":
            raise PermissionError(errno.EACCES, "Permission denied")
        return allowed(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(InputError, match=r"\.bin: cannot be read \(Permission denied\); check its permissions"):
        prune_graph(graph, tmp_path / "out", layers=(1,))
    assert not (tmp_path / "out").exists()


def test_a_source_that_shrinks_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "source").write_bytes(b"x" * 100)
    monkeypatch.delattr(os, "SEEK_DATA")
    with pytest.raises(InputError, match="source: became shorter while it was copied"):
        copy_ranges([ByteRange(tmp_path / "source", 50, 100, 0)], tmp_path / "new")


# Reports its own peak: a child starts with its parent's, and pytest's is larger than what is allowed here.
_PRUNE = """
import json, sys
from pathlib import Path
from gatenorm_export.cli.main import main
code = main(["prune", sys.argv[1], "--layers", "3,7-9,39", "--weights", sys.argv[2], "-o", sys.argv[3], "--quiet"])
status = Path("/proc/self/status").read_text().split()
json.dump({"code": code, "peak_bytes": 1024 * int(status[status.index("VmHWM:") + 1])}, sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_twenty_six_gigabytes_are_shared_and_compacted_in_little_memory(tmp_path: Path) -> None:
    """A sparse file of the size of LLaMA-13B, with bytes to look for at the start of some tensors."""
    graph = make_decoder(Dimensions(), tmp_path / "source")
    data = graph.with_name("model.onnx.data")
    if data.stat().st_size != 26_032_943_104 or data.stat().st_blocks * 512 > LARGE:
        pytest.skip("the file system keeps no sparse files")
    marked = {"embedding": b"first", "layers.4.up": b"middle", "layers.38.q": b"beyond", "head": b"last"}
    source = {tensor.name: tensor for tensor, _ in external_tensors(ir.load(graph))}
    with data.open("r+b") as file:
        for name, mark in marked.items():
            file.seek(source[name].offset or 0)
            file.write(mark)
    places = {"share": graph.with_name("shared.onnx"), "compact": tmp_path / "compact.onnx"}
    for weights, place in places.items():
        command = [sys.executable, "-c", _PRUNE, str(graph), weights, str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
        result = json.loads(done.stderr.splitlines()[-1])
        assert result["code"] == 0, done.stderr
        assert result["peak_bytes"] < 500e6
        onnx.checker.check_model(str(place))
        tensors = {tensor.name: tensor for tensor, _ in external_tensors(ir.load(place))}
        for name, mark in marked.items():
            with Path(tensors[name].path).open("rb") as file:
                file.seek(tensors[name].offset or 0)
                assert file.read(len(mark)) == mark
        record = PrunedGraph.load(place.with_name(f"{place.stem}.manifest.json"))
        assert record.dropped == (3, 7, 8, 9, 39)
        assert next(file.sha256 for file in record.files if file.name == place.name) == sha256_of(place)
    compact = tmp_path / "compact.onnx.data"
    kept = {(tensor.offset, tensor.nbytes) for tensor in tensors.values()}
    assert sum(length for _, length in kept) <= compact.stat().st_size <= 1.01 * sum(length for _, length in kept)
    assert compact.stat().st_blocks * 512 < LARGE
    assert all((tensor.offset or 0) % 65536 == 0 for tensor in tensors.values() if tensor.nbytes > LARGE)
    # Recorded by size alone: a digest would read it all, and take longer than copying it.
    assert [file.sha256 for file in record.files if file.name == compact.name] == [None]
