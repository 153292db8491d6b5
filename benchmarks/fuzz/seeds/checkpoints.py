"""Checkpoints of a two-layer LLaMA and others that are scored: safetensors, GGUF, PyTorch."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.inputs import Seed

_WIDTH, _HEADS, _KV_HEADS, _LAYERS = 16, 4, 2, 2
_SCORES = ("score", "score a cut", "score per head and folded", "resolve whole")


def pattern(*shape: int, start: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Weights that compress well and are not all alike."""
    count = int(np.prod(shape))
    return ((np.arange(start, start + count) % 13 - 6) / 8).astype(dtype).reshape(shape)


def _config(**changes: Any) -> bytes:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _WIDTH,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "num_hidden_layers": _LAYERS,
        "head_dim": _WIDTH // _HEADS,
        "intermediate_size": 32,
        "vocab_size": 32,
    }
    return json.dumps(config | changes, indent=1).encode()


def _llama(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {"model.embed_tokens.weight": pattern(4, _WIDTH, dtype=dtype)}
    for layer in range(_LAYERS):
        stem = f"model.layers.{layer}"
        rows = {"q": _WIDTH, "k": _WIDTH * _KV_HEADS // _HEADS, "v": _WIDTH * _KV_HEADS // _HEADS}
        for letter, count in rows.items():
            name = f"{stem}.self_attn.{letter}_proj.weight"
            found[name] = pattern(count, _WIDTH, start=layer + len(name) + ord(letter), dtype=dtype)
        found[f"{stem}.input_layernorm.weight"] = pattern(_WIDTH, start=layer, dtype=dtype)
    return found


def _safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(tensors, metadata={"format": "pt"}))


def _tokenizer() -> dict[str, bytes]:
    return {
        "tokenizer.json": b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
        "generation_config.json": b'{"eos_token_id": 1}',
    }


def _single() -> Seed:
    files = {"config.json": _config(), "model.safetensors": _safetensors(_llama()), **_tokenizer()}
    kinds = {"config.json": "json", "model.safetensors": "safetensors", "tokenizer.json": "json"}
    return Seed("safetensors", files, kinds, _SCORES)


def _sharded() -> Seed:
    tensors = _llama(np.float16)
    names = list(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    files = {
        "config.json": _config(),
        "model.safetensors.index.json": json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode(),
        **{shard: _safetensors({name: tensors[name] for name in held}) for shard, held in shards.items()},
    }
    kinds = {name: "json" if name.endswith("json") else "safetensors" for name in files}
    return Seed("safetensors in shards", files, kinds, _SCORES)


def _unknown() -> Seed:
    """A family that is not in the table: names and shapes are guessed from."""
    tensors = {name.replace("self_attn", "mixer"): value for name, value in _llama().items()}
    files = {"config.json": _config(architectures=["StrangeModel"]), "model.safetensors": _safetensors(tensors)}
    return Seed("safetensors, unknown", files, {"config.json": "json", "model.safetensors": "safetensors"}, _SCORES[:2])


def _fused() -> Seed:
    config = {"architectures": ["GPT2LMHeadModel"], "n_embd": _WIDTH, "n_head": _HEADS, "n_layer": _LAYERS}
    tensors = {f"h.{layer}.attn.c_attn.weight": pattern(_WIDTH, 3 * _WIDTH, start=layer) for layer in range(_LAYERS)}
    tensors |= {f"h.{layer}.ln_1.weight": pattern(_WIDTH) for layer in range(_LAYERS)}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": _safetensors(tensors)}
    return Seed("safetensors, fused", files, {"config.json": "json", "model.safetensors": "safetensors"}, _SCORES)


def _gptq() -> Seed:
    """Query and key packed to four bits, as AutoGPTQ keeps them."""
    tensors = {name: value for name, value in _llama(np.float16).items() if "q_proj" not in name}
    for layer in range(_LAYERS):
        stem = f"model.layers.{layer}.self_attn.q_proj"
        tensors[f"{stem}.qweight"] = np.arange(2 * _WIDTH, dtype=np.int32).reshape(2, _WIDTH) * 7919
        tensors[f"{stem}.qzeros"] = np.full((1, 2), 0x77777777, dtype=np.int32)
        tensors[f"{stem}.scales"] = pattern(1, _WIDTH, dtype=np.float16)
        tensors[f"{stem}.g_idx"] = np.zeros(_WIDTH, dtype=np.int32)
    config = _config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": -1})
    files = {"config.json": config, "model.safetensors": _safetensors(tensors)}
    return Seed("safetensors, packed", files, {"config.json": "json", "model.safetensors": "safetensors"}, _SCORES[:3])


def _gguf_bytes(width: int, kinds: tuple[str, ...], part: tuple[int, int] | None = None) -> bytes:
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(Path(folder) / "model.gguf", "llama")
        writer.add_block_count(_LAYERS)
        writer.add_embedding_length(width)
        writer.add_head_count(_HEADS)
        writer.add_head_count_kv(_KV_HEADS)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
        writer.add_array("tokenizer.ggml.scores", [0.5, 0.25, -1.0])
        held = range(_LAYERS) if part is None else range(part[0], part[0] + 1)
        for layer in held:
            for index, (letter, rows) in enumerate((("q", width), ("k", width * _KV_HEADS // _HEADS))):
                kind = gguf.GGMLQuantizationType[kinds[(2 * layer + index) % len(kinds)]]
                name = f"blk.{layer}.attn_{letter}.weight"
                writer.add_tensor(name, _quantised(rows, width, kind), raw_dtype=kind)
            writer.add_tensor(f"blk.{layer}.attn_norm.weight", pattern(width))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(folder) / "model.gguf").read_bytes()


def _quantised(rows: int, width: int, kind: Any) -> np.ndarray:
    import gguf

    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    if kind.name in {"F32", "F16"}:
        return pattern(rows, width, dtype=np.float32 if kind.name == "F32" else np.float16)
    # Any bytes are weights to a quantisation; few of its types can be written by the package.
    return (np.arange(rows * width // block * nbytes) % 11).astype(np.uint8).reshape(rows, -1)


_GGUF = {
    "gguf": (32, ("F32", "F16")),
    "gguf Q8_0 and Q4": (32, ("Q8_0", "Q4_0", "Q4_1", "BF16")),
    "gguf Q5 and IQ4_NL": (32, ("Q5_0", "Q5_1", "IQ4_NL", "F16")),
    "gguf K": (256, ("Q2_K", "Q3_K", "Q4_K", "Q6_K")),
    "gguf IQ": (256, ("IQ2_XXS", "IQ3_S", "IQ1_S", "TQ1_0")),
}


def _gguf(name: str) -> Seed:
    files = {"model.gguf": _gguf_bytes(*_GGUF[name])}
    targets = ("score gguf", "score gguf, a cut", "resolve gguf whole")
    return Seed(name, files, {"model.gguf": "gguf"}, targets, ("model.gguf",))


def _split_gguf() -> Seed:
    files = {f"m-{n + 1:05d}-of-00002.gguf": _gguf_bytes(32, ("F16", "Q8_0"), (n, 2)) for n in range(2)}
    return Seed("gguf in parts", files, dict.fromkeys(files, "gguf"), ("score gguf part",), ("m-00002-of-00002.gguf",))


def _torch_bytes(tensors: dict[str, np.ndarray], **options: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, stream, **options)
    return stream.getvalue()


def _torch(name: str, **options: Any) -> Seed:
    files = {"config.json": _config(), "pytorch_model.bin": _torch_bytes(_llama(), **options)}
    kind = "pickle" if options else "torch zip"
    return Seed(name, files, {"config.json": "json", "pytorch_model.bin": kind}, _SCORES[:2])


def checkpoint_seeds() -> tuple[Seed, ...]:
    """Every seed of this file."""
    return (
        _single(),
        _sharded(),
        _unknown(),
        _fused(),
        _gptq(),
        *map(_gguf, _GGUF),
        _split_gguf(),
        _torch("torch"),
        _torch("torch, bare pickle", _use_new_zipfile_serialization=False),
    )
