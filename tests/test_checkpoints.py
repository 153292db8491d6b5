"""Local checkpoints as tables of tensors: what is read is what was written, and what is damaged is one clear line."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quant
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gatenorm_export.checkpoints import open_checkpoint
from gatenorm_export.checkpoints.ranges import LocalFile
from gatenorm_export.errors import InputError

RNG = np.random.default_rng(0)
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
WHOLE = {"I8": torch.int8, "U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool}


def one_of_each() -> dict[str, torch.Tensor]:
    values = torch.tensor(RNG.normal(size=(6, 8)))
    tensors = {name: values.to(dtype) for name, dtype in FLOATS.items()}
    tensors |= {name: torch.tensor(RNG.integers(0, 2, size=(3, 5))).to(dtype) for name, dtype in WHOLE.items()}
    return {**tensors, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}


def read_all(source: str, path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(source, str(path)) as opened:
        return {name: opened.read(name).values for name in opened.tensors}


@pytest.mark.parametrize("source", ["safetensors", "torch"])
def test_every_type_is_read_as_it_was_written(source: str, tmp_path: Path) -> None:
    tensors = one_of_each()
    if source == "safetensors":
        save_file(tensors, path := tmp_path / "model.safetensors")
    else:
        torch.save({"state_dict": tensors}, path := tmp_path / "pytorch_model.bin")
    with open_checkpoint(source, str(path)) as opened:
        assert set(opened.tensors) == set(tensors)
        for name, tensor in tensors.items():
            info, stored = opened.tensors[name], opened.read(name)
            assert info.shape == stored.values.shape == tuple(tensor.shape)
            assert info.file == str(path)
            assert info.nbytes == stored.values.nbytes
            np.testing.assert_array_equal(stored.values.astype(np.float64), tensor.to(torch.float64).numpy())
            if name in {*FLOATS, *WHOLE}:
                assert info.dtype == name


def test_a_digest_tells_bytes_and_not_places(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(4, 4), "b": torch.rand(4, 4)}
    save_file(tensors, tmp_path / "one.safetensors")
    save_file({"z": torch.rand(9), "b": tensors["b"]}, tmp_path / "other.safetensors")
    torch.save(tensors, tmp_path / "x.bin")
    digests = []
    for source, name in [("safetensors", "one.safetensors"), ("safetensors", "other.safetensors"), ("torch", "x.bin")]:
        with open_checkpoint(source, str(tmp_path / name)) as opened:
            digests.append(opened.read("b").digest)
    assert len(set(digests)) == 1
    assert len(digests[0]) == 32
    with open_checkpoint("torch", str(tmp_path / "x.bin")) as opened:
        assert opened.read("a").digest != digests[0]


def test_shards_are_opened_when_they_are_needed(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}))
    with open_checkpoint("safetensors", str(tmp_path)) as opened:
        assert list(opened.tensors) == ["a", "b", "c"]
        assert opened.read("a").values.tolist() == [1, 1]
        with pytest.raises(InputError, match=r"2\.safetensors: cannot be read \(No such file"):
            opened.read("b")
        with pytest.raises(InputError, match=r"1\.safetensors: tensor c is not in it, but the index says so"):
            opened.read("c")
        with pytest.raises(InputError, match="tensor d is in none of the safetensors files"):
            opened.read("d")
        assert "d" not in opened.tensors


@pytest.mark.parametrize("length", [10, 3 << 20])
def test_ranges_are_the_files_bytes_and_may_be_written_to(length: int, tmp_path: Path) -> None:
    data = RNG.integers(0, 256, size=5 << 20, dtype=np.uint8)
    (path := tmp_path / "file").write_bytes(data.tobytes())
    file = LocalFile(path)
    for offset in (0, 1, 4096, 70_001, len(data) - length):
        found = file.read(offset, length)
        np.testing.assert_array_equal(found, data[offset : offset + length])
        found += 1
    np.testing.assert_array_equal(file.read(0, len(data)), data)
    for offset, size in ((len(data) - length + 1, length), (-1, length), (0, -1)):
        with pytest.raises(InputError, match="it is cut off"):
            file.read(offset, size)
    path.write_bytes(data[: 1 << 20].tobytes())
    with pytest.raises(InputError, match="file: became shorter while it was read"):
        file.read(len(data) - length, length)
    file.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the kernel says of the process")
def test_what_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    with (path := tmp_path / "file").open("wb") as file:
        file.truncate(400 << 20)
    code = (
        "import sys\nfrom pathlib import Path\nfrom gatenorm_export.checkpoints.ranges import LocalFile, digest_of\n"
        "file = LocalFile(Path(sys.argv[1]))\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\nfor start in range(0, 400, 40): digest_of(file.read(start << 20, 40 << 20))\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert 30_000 < int(done.stdout) < 100_000


@pytest.mark.parametrize("shard", ["../1.safetensors", "/etc/passwd", "a/b", "..", "", "c:x", "a\\b", 7, None])
def test_a_shard_outside_the_folder_is_refused(shard: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="which is not a file of this folder; refused"):
        read_all("safetensors", tmp_path)


def header(table: Any, data: bytes = b"\0" * 16) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "empty": b"",
    "short": b"\x08\0\0",
    "only a length": struct.pack("<Q", 2),
    "huge length": struct.pack("<Q", 2**63) + b"{}",
    "length past the end": struct.pack("<Q", 100) + b"{}",
    "no json": header(b"\xff\xfe{}"),
    "a list": header([entry()]),
    "deep": header(b'{"a":' * 100_000),
    "duplicate names": header(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2)),
    "no entry": header({"a": 3}),
    "unknown type": header({"a": entry("F128")}),
    "type no text": header({"a": entry(["F32"])}),
    "negative length": header({"a": entry(shape=[-4])}),
    "fractional": header({"a": entry(shape=[4.0])}),
    "truth value": header({"a": entry(shape=[True, 4])}),
    "many axes": header({"a": entry(shape=[1] * 50 + [4])}),
    "overflowing": header({"a": entry(shape=[2**62, 2**62, 4])}),
    "shape and bytes": header({"a": entry(shape=[5])}),
    "reversed": header({"a": entry(offsets=[16, 0])}),
    "past the end": header({"a": entry(shape=[8], offsets=[0, 32])}),
    "negative offset": header({"a": entry(offsets=[-16, 0])}),
    "one offset": header({"a": entry(offsets=[0])}),
    "overlap": header({"a": entry(), "b": entry(shape=[2], offsets=[8, 16])}),
    "hole": header({"a": entry(shape=[1], offsets=[0, 4]), "b": entry(shape=[1], offsets=[12, 16])}),
    "bytes left": header({"a": entry(shape=[2], offsets=[0, 8])}),
    "metadata": header({"__metadata__": {"a": 1}, "a": entry()}),
    # As many digits as Python reads, and one more once the header's length is added.
    "longest number": header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, %s]}}' % (b"9" * 4300)),
    "huge number": header(b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 16]}}' % (b"9" * 5000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_safetensors_header(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(HOSTILE[name])
    start = time.monotonic()
    with pytest.raises(InputError, match=r"model\.safetensors: not readable safetensors \(") as caught:
        read_all("safetensors", tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert time.monotonic() - start < 2


def good_gguf(path: Path) -> dict[str, np.ndarray]:
    """A GGUF of many fields and types; returns what each tensor must be read as."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_float32("some.epsilon", 0.5)
    writer.add_array("some.counts", [1, 2, 3])
    writer.add_array("tokenizer.ggml.tokens", [f"w{index}" for index in range(5000)])
    writer.add_bool("some.flag", True)
    expected = {}
    for kind in (Quant.F32, Quant.F16, Quant.BF16, Quant.Q4_0, Quant.Q4_1, Quant.Q5_0, Quant.Q5_1, Quant.Q8_0):
        data = RNG.normal(size=(6, 64)).astype(np.float32)
        packed = gguf.quantize(data, kind)
        writer.add_tensor(f"blk.{kind.name}.weight", packed, raw_dtype=kind)
        expected[f"blk.{kind.name}.weight"] = gguf.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    good_gguf(path)
    return path.read_bytes()


def test_gguf_is_read_as_its_own_package_reads_it(tmp_path: Path) -> None:
    expected = good_gguf(tmp_path / "model.gguf")
    with open_checkpoint("gguf", str(tmp_path / "model.gguf")) as opened:
        assert opened.fields["general.architecture"] == "llama"
        assert opened.fields["llama.block_count"] == 2
        assert opened.fields["some.counts"] == [1, 2, 3]
        assert opened.fields["some.epsilon"] == 0.5
        assert opened.fields["some.flag"] is True
        assert "tokenizer.ggml.tokens" not in opened.fields
        assert set(opened.tensors) == set(expected)
        for name, values in expected.items():
            stored = opened.read(name)
            assert opened.tensors[name].shape == stored.values.shape == (6, 64)
            np.testing.assert_array_equal(stored.values.astype(np.float32), values)
        assert opened.read("blk.BF16.weight").values.dtype == ml_dtypes.bfloat16
        with pytest.raises(InputError, match=r"model\.gguf: tensor other is missing"):
            opened.read("other")


@pytest.mark.parametrize("kind", [kind for kind in Quant if kind.name.startswith(("Q", "IQ", "TQ", "MXFP4"))])
def test_every_quantisation_that_the_package_undoes(kind: Quant, tmp_path: Path) -> None:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    raw = RNG.integers(0, 60, size=(3, 2 * nbytes), dtype=np.uint8)
    try:
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(raw, kind)
    except NotImplementedError:
        expected = None
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("a", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint("gguf", str(tmp_path / "model.gguf")) as opened, np.errstate(all="ignore"):
        assert opened.tensors["a"].shape == (3, 2 * block)
        assert opened.tensors["a"].dtype == kind.name
        if expected is None:
            with pytest.raises(InputError, match="tensor a cannot be dequantised"):
                opened.read("a")
        else:
            np.testing.assert_array_equal(opened.read("a").values, expected)


def test_a_split_gguf_is_read_as_one(tmp_path: Path) -> None:
    for part in (1, 2):
        writer = gguf.GGUFWriter(tmp_path / f"m-{part:05d}-of-00002.gguf", "llama")
        writer.add_uint32("part", part)
        writer.add_tensor(f"t{part}", np.full((2, 2), part, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with open_checkpoint("gguf", str(tmp_path / "m-00002-of-00002.gguf")) as opened:
        assert opened.fields["part"] == 1
        assert opened.read("t2").values.tolist() == [[2, 2], [2, 2]]
        assert opened.read("t1").values.tolist() == [[1, 1], [1, 1]]
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(InputError, match=r"m-00001-of-00002\.gguf: a part of this split GGUF is not there"):
        read_all("gguf", tmp_path / "m-00002-of-00002.gguf")


def gguf_header(n_tensors: int, n_fields: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"a", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


ROOM = b"\0" * 96
HOSTILE_GGUF = {
    "empty": b"",
    "magic": b"GGML" + b"\0" * 40,
    "cut": b"GGUF\x03\0",
    "version": gguf_header(0, 0, version=9),
    "big-endian": gguf_header(0, 0, version=0x03000000),
    "tensors": gguf_header(2**60, 0, ROOM),
    "fields": gguf_header(0, 2**63, ROOM),
    "long key": gguf_header(0, 1, struct.pack("<Q", 2**62) + ROOM),
    "long text": gguf_header(0, 1, text(b"k") + struct.pack("<IQ", 8, 2**62) + ROOM),
    "long list": gguf_header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 4, 2**61) + ROOM),
    "long list of texts": gguf_header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 2**61) + ROOM),
    "lying texts": gguf_header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 10) + b"\xff" * 96),
    "nested lists": gguf_header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 1) + ROOM),
    "field type": gguf_header(0, 1, text(b"k") + struct.pack("<I", 77) + ROOM),
    "field twice": gguf_header(0, 2, (text(b"k") + struct.pack("<IB", 0, 1)) * 2 + ROOM),
    "no text": gguf_header(0, 1, text(b"\xff\xff") + ROOM),
    "alignment": gguf_header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0) + ROOM),
    "alignment no power": gguf_header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 24) + ROOM),
    "tensor twice": gguf_header(2, 0, tensor() * 2 + ROOM),
    "overlap": gguf_header(2, 0, tensor() + tensor(b"b", offset=8) + ROOM),
    "many axes": gguf_header(1, 0, tensor(shape=(1,) * 9) + ROOM),
    "huge": gguf_header(1, 0, tensor(shape=(2**63, 2**63)) + ROOM),
    "past the end": gguf_header(1, 0, tensor(offset=2**63) + ROOM),
    "no whole block": gguf_header(1, 0, tensor(shape=(4,), kind=2) + ROOM),
}


@pytest.mark.parametrize("name", HOSTILE_GGUF)
def test_a_hostile_gguf_header(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(HOSTILE_GGUF[name])
    start = time.monotonic()
    with pytest.raises(InputError, match=r"model\.gguf: not readable GGUF \(") as caught:
        read_all("gguf", tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 2


def test_a_type_newer_than_the_package_spoils_only_its_own_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_header(2, 0, tensor(b"new", kind=999) + tensor() + ROOM))
    with open_checkpoint("gguf", str(path)) as opened:
        assert opened.read("a").values.tolist() == [0, 0, 0, 0]
        with pytest.raises(InputError, match=r"tensor new cannot be dequantised \(GGUF type 999"):
            opened.read("new")


mutations = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=2000)
@given(changes=mutations, cut=st.none() | st.integers(0, 4000))
def test_a_mutated_safetensors_is_read_or_refused(changes, cut, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("mutated") / "model.safetensors"
    save_file(one_of_each(), path)
    assert_read_or_refused("safetensors", path, path.read_bytes(), changes, cut)


@settings(max_examples=150, deadline=2000)
@given(changes=mutations, cut=st.none() | st.integers(0, 4000))
def test_a_mutated_gguf_is_read_or_refused(
    changes, cut, gguf_bytes: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("mutated") / "model.gguf"
    # Most of the file is vocabulary: changes are to meet what surrounds it.
    spread = [(place if place % 2 else len(gguf_bytes) - 1 - place, value) for place, value in changes]
    assert_read_or_refused("gguf", path, gguf_bytes, spread, cut)


def assert_read_or_refused(source: str, path: Path, data: bytes, changes: Any, cut: int | None) -> None:
    mutated = bytearray(data)
    for place, value in changes:
        # Headers stand in front, so most changes are to hit them.
        mutated[place % min(len(mutated), 1500) if place >= 0 else place] = value
    path.write_bytes(bytes(mutated[: None if cut is None else cut]))
    try:
        with np.errstate(all="ignore"):
            read_all(source, path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: its pickle is damaged, or .* convert them to safetenso"):
        read_all("torch", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"pickle", b"PK\x03\x04 and nothing else", b"\x80\x02]."])
def test_a_damaged_pickle_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: .*") as caught:
        read_all("torch", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_sharded_pickles(legacy: bool, tmp_path: Path) -> None:
    weight_map = {}
    for shard in "ab":
        value = {shard: torch.full((2, 3), 1.5, dtype=torch.bfloat16).T}
        torch.save(value, tmp_path / f"{shard}.bin", _use_new_zipfile_serialization=not legacy)
        weight_map[shard] = f"{shard}.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = read_all("torch", tmp_path)
    assert {name: values.shape for name, values in found.items()} == {"a": (3, 2), "b": (3, 2)}
    assert found["b"].astype(np.float32).tolist() == [[1.5, 1.5]] * 3
