"""Packed and scaled weights against an independent forward packing, written out word by word as the formats say."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from model_zoo import row
from safetensors.numpy import load_file, save_file

from gatenorm_export.checkpoints import open_checkpoint
from gatenorm_export.errors import InputError
from gatenorm_export.scoring import score_model
from gatenorm_export.sources import resolve_model

RNG = np.random.default_rng(7)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def write(folder: Path, tensors: dict[str, np.ndarray], method: dict[str, object] | None = None) -> str:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": method} if method else {}))
    return str(folder)


def read(place: str, name: str = "q.weight") -> np.ndarray:
    with open_checkpoint("safetensors", place) as source:
        stored, info = source.read(name), source.tensors[name]
        assert info.shape == stored.values.shape
        return stored.values


def pack_stream(values: np.ndarray, bits: int) -> np.ndarray:
    """[n, m] -> int32 [n * bits / 32, m]: one long number for each column, the first value in its lowest bits."""
    words = len(values) * bits // 32
    packed = np.zeros((words, values.shape[1]), dtype=np.uint32)
    for column in range(values.shape[1]):
        number = sum(int(value) << (bits * index) for index, value in enumerate(values[:, column]))
        packed[:, column] = [(number >> (32 * word)) & 0xFFFFFFFF for word in range(words)]
    return packed.view(np.int32)


def gptq(depth: int, width: int, bits: int, groups: np.ndarray, *, shift: int) -> tuple[dict[str, np.ndarray], ...]:
    n_groups = int(groups.max()) + 1
    quantised = RNG.integers(0, 2**bits, size=(depth, width))
    zeros = RNG.integers(1, 2**bits, size=(n_groups, width))
    scales = RNG.uniform(0.01, 0.1, size=(n_groups, width)).astype(np.float16)
    weight = ((quantised - zeros[groups]) * scales[groups].astype(np.float64)).T
    tensors = {
        "q.qweight": pack_stream(quantised, bits),
        "q.qzeros": np.ascontiguousarray(pack_stream((zeros - shift).T, bits).T),
        "q.scales": scales,
        "q.g_idx": groups.astype(np.int32),
    }
    return tensors, {"weight": weight}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("form", "shift"), [("gptq", 1), ("gptq_v2", 0), (None, 1)])
@pytest.mark.parametrize("order", ["given", "acted", "absent"])
def test_gptq(bits: int, form: str | None, shift: int, order: str, tmp_path: Path) -> None:
    groups = np.arange(96) // 32
    if order == "acted":
        groups = RNG.permutation(groups)
    tensors, expected = gptq(96, 64, bits, groups, shift=shift)
    if order == "absent":
        del tensors["q.g_idx"]
    method = {"quant_method": "gptq", "bits": bits, "group_size": 32}
    place = write(tmp_path, tensors, method | ({"checkpoint_format": form} if form else {}))
    np.testing.assert_allclose(read(place), expected["weight"], rtol=1e-6)
    with open_checkpoint("safetensors", place) as source:
        assert list(source.tensors) == ["q.weight"]
        assert source.tensors["q.weight"].dtype == f"GPTQ {bits}-bit"


def test_gptqs_symmetric_zero_is_the_middle(tmp_path: Path) -> None:
    """What every symmetric checkpoint holds: 0x77777777 means 8."""
    tensors = {
        "q.qweight": np.full((4, 8), 0x11111111 * 8, dtype=np.uint32).view(np.int32),
        "q.qzeros": np.full((1, 1), 0x77777777, dtype=np.int32),
        "q.scales": np.ones((1, 8), dtype=np.float16),
    }
    assert not read(write(tmp_path, tensors)).any()


def test_the_old_file_of_autogptq_is_read(tmp_path: Path) -> None:
    tensors, expected = gptq(64, 32, 4, np.arange(64) // 32, shift=0)
    place = write(tmp_path, tensors)
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "checkpoint_format": "gptq_v2"}))
    np.testing.assert_allclose(read(place), expected["weight"], rtol=1e-6)


def test_awq(tmp_path: Path) -> None:
    depth, width, size = 64, 48, 32
    quantised = RNG.integers(0, 16, size=(depth, width))
    zeros = RNG.integers(0, 16, size=(depth // size, width))
    scales = RNG.uniform(0.01, 0.1, size=(depth // size, width)).astype(np.float16)

    def pack(values: np.ndarray) -> np.ndarray:
        packed = np.zeros((len(values), width // 8), dtype=np.uint32)
        for column in range(width // 8):
            for nibble, place in enumerate(AWQ_ORDER):
                packed[:, column] |= values[:, 8 * column + place].astype(np.uint32) << np.uint32(4 * nibble)
        return packed.view(np.int32)

    groups = np.arange(depth) // size
    expected = ((quantised - zeros[groups]) * scales[groups].astype(np.float64)).T
    tensors = {"q.qweight": pack(quantised), "q.qzeros": pack(zeros), "q.scales": scales}
    method = {"quant_method": "awq", "bits": 4, "version": "gemm"}
    np.testing.assert_allclose(read(write(tmp_path, tensors, method)), expected, rtol=1e-6)
    with pytest.raises(InputError, match=r"q\.qweight is packed by awq \(gemv\), which is not undone here"):
        read(write(tmp_path, tensors, method | {"version": "gemv"}))


def fp8(shape: tuple[int, int]) -> np.ndarray:
    return RNG.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize(
    ("shape", "scales", "block"),
    [
        ((6, 8), (), None),
        ((6, 8), (1,), None),
        ((6, 8), (6, 1), None),
        ((6, 8), (6,), None),
        ((256, 384), (2, 3), None),
        ((200, 300), (2, 3), None),
        ((132, 128), (2, 1), None),
        ((64, 96), (2, 3), [32, 32]),
    ],
)
def test_fp8_with_scales(name, shape, scales, block, tmp_path: Path) -> None:
    weight, scale = fp8(shape), RNG.uniform(0.5, 2, size=scales).astype(np.float32)
    method = {"quant_method": "fp8", **({"weight_block_size": block} if block else {})}
    found = read(write(tmp_path, {"q.weight": weight, f"q.{name}": scale, "q.input_scale": scale}, method))
    rows, columns = block or (128, 128)
    expected = weight.astype(np.float64)
    for i in range(shape[0]):
        for j in range(shape[1]):
            if scale.size == 1:
                factor = scale.reshape(())
            elif scale.size == shape[0]:
                factor = scale.reshape(-1)[i]
            else:
                factor = scale[i // rows, j // columns]
            expected[i, j] *= float(factor)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_scale_is_part_of_the_digest(tmp_path: Path) -> None:
    weight, digests = fp8((4, 4)), []
    for value in (1.0, 2.0):
        with open_checkpoint(
            "safetensors", write(tmp_path, {"q.weight": weight, "q.weight_scale": np.float32([value])})
        ) as source:
            digests.append(source.read("q.weight").digest)
            assert source.tensors["q.weight"].nbytes == 16 + 4
    assert digests[0] != digests[1]


def test_scales_that_do_not_fit_are_named(tmp_path: Path) -> None:
    place = write(tmp_path, {"q.weight": fp8((256, 256)), "q.weight_scale": np.ones((3, 5), np.float32)})
    with pytest.raises(
        InputError, match=r"tensor q\.weight \[256, 256\] does not fit its scales q\.weight_scale \[3, 5\]"
    ):
        read(place)


def test_tensors_beside_packed_ones_are_as_they_are(tmp_path: Path) -> None:
    tensors, _ = gptq(32, 32, 4, np.zeros(32, int), shift=1)
    plain = RNG.normal(size=(3, 3)).astype(np.float16)
    place = write(tmp_path, {**tensors, "norm.weight": plain, "q.bias": plain[0]})
    np.testing.assert_array_equal(read(place, "norm.weight"), plain)
    with open_checkpoint("safetensors", place) as source:
        assert set(source.tensors) == {"norm.weight", "q.bias", "q.weight"}
        with pytest.raises(InputError, match="tensor other is in none"):
            source.read("other")


@pytest.mark.parametrize("damage", ["short", "type", "zeros", "alone", "groups"])
def test_a_damaged_packing_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    tensors, _ = gptq(64, 64, 4, np.arange(64) // 32, shift=1)
    if damage == "short":
        tensors["q.qweight"] = tensors["q.qweight"][:, :60].copy()
    elif damage == "type":
        tensors["q.qweight"] = tensors["q.qweight"].astype(np.int64)
    elif damage == "zeros":
        tensors["q.qzeros"] = tensors["q.qzeros"][:1].copy()
    elif damage == "alone":
        del tensors["q.scales"]
    else:
        tensors["q.g_idx"][0] = 99
    with pytest.raises(InputError, match=r"model\.safetensors: tensor q\."):
        read(write(tmp_path, tensors))


@pytest.mark.parametrize(
    ("beside", "method"),
    [
        ("q.weight.absmax", "bitsandbytes"),
        ("q.SCB", "bitsandbytes"),
        ("q.weight_packed", "compressed-tensors"),
        ("q.W_q", "HQQ"),
        ("q.codebooks", "AQLM"),
        ("q.weight_scale_2", "ModelOpt"),
    ],
)
def test_other_quantisers_are_refused_by_name(beside: str, method: str, tmp_path: Path) -> None:
    place = write(tmp_path, {"q.weight": np.zeros((4, 4), np.uint8), beside: np.zeros((4, 4), np.uint8)})
    with pytest.raises(InputError, match=rf"{tmp_path}: tensor q\.weight is packed by {method}"):
        read(place)


@pytest.mark.parametrize("lost", ["model.layers.2.self_attn.k_proj.weight_scale", "all, and the config tells"])
def test_a_lost_scale_is_not_taken_for_plain_fp8(lost: str, tmp_path: Path) -> None:
    """Scored as they lie, such weights would turn the ranking round."""
    folder = row("llama-gqa").save(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("q_proj.weight", "k_proj.weight"))]:
        scale = np.abs(tensors[name]).max() / 448
        tensors[name] = (tensors[name] / scale).astype(ml_dtypes.float8_e4m3fn)
        tensors[f"{name}_scale"] = np.array(scale, np.float32)
    save_file(tensors, folder / "model.safetensors")
    spec = resolve_model(str(folder), whole=False)
    assert score_model(spec).convention.checkpoint_dtype == "F8_E4M3 scaled"
    kept = {name: tensor for name, tensor in tensors.items() if name != lost}
    if lost not in tensors:
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale")}
    save_file(kept, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if lost not in tensors:
        # Plain fp8 is a way to keep weights as any other, until something says that there was a quantiser.
        assert score_model(resolve_model(str(folder), whole=False)).convention.checkpoint_dtype == "F8_E4M3"
        config["quantization_config"] = {"quant_method": "fp8"}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"tensor model.layers.\d.self_attn.._proj.weight is stored as F8_E4M3 and no"):
        score_model(resolve_model(str(folder), whole=False))


def test_whole_numbers_without_a_scale_are_no_weights(tmp_path: Path) -> None:
    folder = row("llama-gqa").save(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = (tensors[name] * 1000).round().clip(-127, 127).astype(np.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        InputError, match=r"layers.1.self_attn.q_proj.weight is stored as I8 and no scale lies beside it"
    ):
        score_model(resolve_model(str(folder), whole=False))
