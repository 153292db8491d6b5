"""What follows a pruned graph into its folder, and that onnxruntime-genai and optimum run such a folder."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from model_zoo import D_MODEL, MAX_POSITIONS, N_LAYERS, VOCAB, row
from toy_graphs import toy_decoder

from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.genai_config import CacheNames, rewrite_genai_config
from gatenorm_export.pruning import prune_graph

GENAI: dict[str, Any] = {
    "model": {
        "decoder": {
            "filename": "model.onnx",
            "inputs": {"past_key_names": "past_%d_key", "past_value_names": "past_%d_value"},
            "outputs": {"present_key_names": "present_%d_key", "present_value_names": "present_%d_value"},
            "num_hidden_layers": 3,
        },
        "type": "llama",
    },
    "search": {"max_length": 16},
}


def genai(**decoder: Any) -> dict[str, Any]:
    config = copy.deepcopy(GENAI)
    config["model"]["decoder"] |= decoder
    return config


def names(kept: tuple[int, ...], *, dense: bool, of: int = 3, number: int = 1) -> CacheNames:
    """``number`` is the distance of the numbers in the names: 2 is a hybrid with a cache in every other layer."""
    before = {layer: (f"past_{number * layer}_key", f"past_{number * layer}_value") for layer in range(of)}
    after = {
        layer: tuple(f"past_{index if dense else number * layer}_{part}" for part in ("key", "value"))
        for index, layer in enumerate(kept)
    }
    return CacheNames(before, after)


def decoder_of(config: dict[str, Any] | None) -> dict[str, Any]:
    assert config is not None
    section: dict[str, Any] = config["model"]["decoder"]
    return section


def test_dense_names_change_the_layer_count_and_kept_names_do_not() -> None:
    dense = decoder_of(rewrite_genai_config(genai(), "model.onnx", "small.onnx", names((0, 2), dense=True)))
    keep = decoder_of(rewrite_genai_config(genai(), "model.onnx", "small.onnx", names((0, 2), dense=False)))
    assert (dense["num_hidden_layers"], keep["num_hidden_layers"]) == (2, 3)
    assert dense["filename"] == keep["filename"] == "small.onnx"
    assert dense["inputs"] == GENAI["model"]["decoder"]["inputs"]


def test_the_source_config_is_not_changed() -> None:
    config = genai()
    rewrite_genai_config(config, "model.onnx", "small.onnx", names((2,), dense=True))
    assert config == GENAI


@pytest.mark.parametrize(
    ("dense", "kept", "layers"),
    [(True, (1, 2), [1]), (False, (1, 2), [2]), (True, (0, 1), [0]), (False, (0, 1), [0]), (True, (1,), None)],
)
def test_windowed_layers_are_renumbered(dense: bool, kept: tuple[int, ...], layers: list[int] | None) -> None:
    window = {"window_size": 4, "slide_key_value_cache": False, "layers": [0, 2]}
    config = rewrite_genai_config(genai(sliding_window=window), "model.onnx", "model.onnx", names(kept, dense=dense))
    # No list at all would mean that every layer slides.
    found = decoder_of(config).get("sliding_window")
    assert (found and found["layers"]) == layers


def test_a_count_of_more_than_the_caches_stays() -> None:
    """A hybrid counts its recurrent layers too, an encoder-decoder its cross-attention caches."""
    hybrid = rewrite_genai_config(
        genai(num_hidden_layers=6), "model.onnx", "model.onnx", names((0, 2), dense=True, number=2)
    )
    assert decoder_of(hybrid)["num_hidden_layers"] == 6
    config = genai()
    config["model"]["decoder"]["inputs"]["cross_past_key_names"] = "past_key_cross_%d"
    crossed = rewrite_genai_config(config, "model.onnx", "model.onnx", names((0, 2), dense=True))
    assert decoder_of(crossed)["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    ("decoder", "engine", "setting"),
    [
        ({"sliding_window": {"window_size": 4}}, {}, "slide_key_value_cache"),
        ({}, {"dynamic_batching": {"block_size": 8}}, "dynamic_batching"),
        ({"session_options": {"provider_options": [{"NvTensorRtRtx": {}}]}}, {}, "NvTensorRtRtx"),
    ],
)
def test_gaps_are_refused_where_genai_counts_without(decoder: dict, engine: dict, setting: str) -> None:
    config = genai(**decoder) | {"engine": engine}
    with pytest.raises(RefusedError, match=f"{setting}.* use --kv-names dense"):
        rewrite_genai_config(config, "model.onnx", "model.onnx", names((0, 2), dense=False))
    assert decoder_of(rewrite_genai_config(config, "model.onnx", "model.onnx", names((0, 2), dense=True)))


@pytest.mark.parametrize("setting", ["layer_types", "state_groups", "shared_initializers"])
def test_what_genai_could_not_run_is_refused(setting: str) -> None:
    with pytest.raises(RefusedError, match=f"model.decoder.{setting}: .* name a .onnx file"):
        rewrite_genai_config(genai(**{setting: ["x"]}), "model.onnx", "model.onnx", names((0, 2), dense=True))


def test_a_config_with_other_cache_names_is_no_description_of_the_graph() -> None:
    config = genai(inputs={"past_key_names": "past_key_values.%d.key"})
    with pytest.raises(
        InputError, match=r"names the caches past_key_values.%d.key, but layer 0 of the graph has past_0"
    ):
        rewrite_genai_config(config, "model.onnx", "model.onnx", names((0, 2), dense=True))


def test_an_encoder_is_renamed_and_its_decoder_left_alone() -> None:
    config = genai()
    config["model"]["encoder"] = {"filename": "encoder.onnx", "num_hidden_layers": 3}
    found = rewrite_genai_config(config, "encoder.onnx", "model.onnx", CacheNames({}, {}))
    assert found is not None
    assert found["model"]["encoder"] == {"filename": "model.onnx", "num_hidden_layers": 3}
    assert found["model"]["decoder"] == GENAI["model"]["decoder"]
    assert rewrite_genai_config(config, "vision.onnx", "model.onnx", CacheNames({}, {})) is None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    ir.save(toy_decoder(), folder / "model.onnx", external_data="weights.bin")
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    (folder / "genai_config.json").write_text(json.dumps(GENAI))
    for name in ("model.onnx_data", "other_data", "secrets.env", "vision.onnx"):
        (folder / name).write_text("not ours")
    return folder / "model.onnx"


def test_a_folder_gets_what_clients_read_and_no_data_of_others(source: Path, tmp_path: Path) -> None:
    record = prune_graph(source, tmp_path / "out", layers=(1,))
    copied = {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {*copied, "genai_config.json", "model.onnx", "model.onnx.data", "manifest.json"}
    assert {file.name for file in record.files} == written - {"manifest.json"}
    for name in copied:
        assert (tmp_path / "out" / name).read_bytes() == (source.parent / name).read_bytes()
    rewritten = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert rewritten == genai(num_hidden_layers=2)
    metadata = ir.load(tmp_path / "out" / "model.onnx").metadata_props
    assert (json.loads(metadata["gatenorm.layers"]), metadata["gatenorm.n_layers"]) == ([0, 2], "3")
    assert record.layer_map == {0: 0, 1: None, 2: 1}


def test_a_single_file_and_the_sources_own_folder_get_none(source: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    prune_graph(source, tmp_path / "alone" / "small.onnx", layers=(1,))
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {
        "small.onnx",
        "small.onnx.data",
        "small.manifest.json",
    }
    renamed = source.rename(source.with_name("decoder.onnx"))
    prune_graph(renamed, source.parent, layers=(1,))
    del before["model.onnx"]
    assert all((source.parent / name).read_bytes() == content for name, content in before.items())


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_genai_config_is_one_clear_line(source: Path, tmp_path: Path, content: str) -> None:
    (source.parent / "genai_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"genai_config\.json: not "):
        prune_graph(source, tmp_path / "out", layers=(1,))
    assert not (tmp_path / "out").exists()


def greedy(graph: Path, prompt: list[int], steps: int) -> list[int]:
    """Greedy tokens without any client, every step from an empty cache: what the graph itself computes."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    tokens = list(prompt)
    for _ in range(steps):
        feed: dict[str, np.ndarray] = {}
        for entry in session.get_inputs():
            if entry.name == "input_ids":
                feed[entry.name] = np.array([tokens])
            elif entry.name == "attention_mask":
                feed[entry.name] = np.ones((1, len(tokens)), np.int64)
            elif entry.name == "position_ids":
                feed[entry.name] = np.arange(len(tokens))[None]
            else:
                # genai's builder leaves the head size open.
                heads, size = entry.shape[1], entry.shape[3] if isinstance(entry.shape[3], int) else 16
                feed[entry.name] = np.zeros((1, heads, 0, size), np.float32)
        tokens.append(int(session.run(None, feed)[0][0, -1].argmax()))
    return tokens


PROMPT = [5, 9, 17, 33, 21]
SUBSETS = [(0, 2), tuple(range(N_LAYERS))]


@pytest.mark.parametrize("kv_names", ["dense", "keep"])
@pytest.mark.parametrize("layers", SUBSETS, ids=str)
def test_optimum_generates_what_the_pruned_graph_computes(layers, kv_names, request, tmp_path: Path) -> None:
    optimum = pytest.importorskip("optimum.onnxruntime")
    import torch

    _, graph, _ = request.getfixturevalue("exported")("llama-gqa")
    record = prune_graph(graph, tmp_path / "out", layers=layers, kv_names=kv_names)
    # optimum decides on the cache by this argument alone; a graph without caches needs it, whatever config.json says.
    model = optimum.ORTModelForCausalLM.from_pretrained(tmp_path / "out", use_cache=bool(record.kv_cache))
    tokens = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
    )
    assert tokens[0].tolist() == greedy(tmp_path / "out" / "model.onnx", PROMPT, 8)


needs_genai = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed"
)


@pytest.fixture(scope="module", params=["builder", "optimum"])
def genai_folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama for genai: built by its own builder, with fused attention, or exported by optimum and described."""
    folder = tmp_path_factory.mktemp("genai")
    if request.param == "builder":
        _build(folder)
        return folder / "base"
    pytest.importorskip("optimum.onnxruntime")
    _, graph, _ = request.getfixturevalue("exported")("llama-gqa")
    shutil.copytree(graph.parent, folder / "base")
    inputs = {name: name for name in ("input_ids", "attention_mask", "position_ids")}
    pasts = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    presents = {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_size": 16, "hidden_size": D_MODEL}
    decoder = {"filename": "model.onnx", "session_options": {}, "num_hidden_layers": N_LAYERS, **sizes}
    decoder |= {"inputs": inputs | pasts, "outputs": {"logits": "logits"} | presents}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": VOCAB}
    model = {"type": "llama", "context_length": MAX_POSITIONS, "decoder": decoder, **tokens}
    search = {"max_length": MAX_POSITIONS, "past_present_share_buffer": False}
    (folder / "base" / "genai_config.json").write_text(json.dumps({"model": model, "search": search}))
    return folder / "base"


def _build(folder: Path) -> None:
    # The builder takes every projection onto as many features as there are words for the head: let the MLP differ.
    dataclasses.replace(row("llama-gqa"), vocab=160).save(folder / "checkpoint")
    # In a process of its own: it prints, and sets up torch.
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(folder / "checkpoint"), "-o", str(folder / "base"), "-p", "fp32", "-e", "cpu"]
    done = subprocess.run([*command, "-c", str(folder / "cache")], capture_output=True, text=True, check=False)
    if "ImportError: cannot import name" in done.stderr:
        pytest.skip(f"genai's builder does not run with the transformers here: {done.stderr.splitlines()[-1][:80]}")
    assert done.returncode == 0, done.stderr


@needs_genai
@pytest.mark.parametrize("kv_names", ["dense", "keep"])
@pytest.mark.parametrize("layers", SUBSETS, ids=str)
def test_genai_generates_what_the_pruned_graph_computes(layers, kv_names, genai_folder: Path, tmp_path: Path) -> None:
    import onnxruntime_genai as og

    prune_graph(genai_folder / "model.onnx", tmp_path / "out", layers=layers, kv_names=kv_names)
    model = og.Model(str(tmp_path / "out"))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(PROMPT) + 8, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([PROMPT], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    tokens = [int(token) for token in generator.get_sequence(0)]
    assert len(tokens) > len(PROMPT)
    assert tokens == greedy(tmp_path / "out" / "model.onnx", PROMPT, 8)[: len(tokens)]
