"""LLaMA and everything that kept its names: separate q_proj and k_proj in layers.N.self_attn."""

from __future__ import annotations

import dataclasses

from gatenorm_export.architectures.adapter import Adapter, DimKeys, Modules, TowerRow

GROUPED = DimKeys(n_kv_heads="num_key_value_heads", head_dim="head_dim")
SELF_ATTN = ("layers.{layer}.self_attn.q_proj.weight", "layers.{layer}.self_attn.k_proj.weight")
INPUT_NORM = ("layers.{layer}.input_layernorm.weight",)

_DENSE = Modules("layers", "self_attn", "mlp.down_proj")
_EXPERTS = Modules("layers", "self_attn", None)
_ROW = TowerRow(tensors=SELF_ATTN, modules=_DENSE, dims=GROUPED, norm=INPUT_NORM)


def _heads_of(size: int) -> DimKeys:
    """Dimensions of a family whose config class has a head size of its own, which a config may leave out."""
    return dataclasses.replace(GROUPED, defaults=(("head_dim", size),))


def _family(family: str, **changes: object) -> Adapter:
    return Adapter(family, (dataclasses.replace(_ROW, **changes),))  # type: ignore[arg-type]


LLAMA = _family("llama")
MIXTRAL = _family("mixtral", modules=_EXPERTS)
QWEN2 = _family("qwen2")
QWEN2_MOE = _family("qwen2-moe", modules=_EXPERTS)
QWEN3 = _family("qwen3", dims=_heads_of(128))
QWEN3_MOE = _family("qwen3-moe", modules=_EXPERTS)
STABLELM = _family("stablelm")
STARCODER2 = _family("starcoder2", modules=Modules("layers", "self_attn", "mlp.c_proj"))
# OLMo 1 norms without a weight; OLMo 2 and 3 and EXAONE 4 norm what attention returns, not what goes into it.
OLMO = _family("olmo", norm=())
_NORM_BEHIND = dataclasses.replace(_DENSE, norm_behind="post_attention_layernorm")
OLMO2 = _family("olmo2", norm=(), modules=_NORM_BEHIND)
EXAONE4 = _family("exaone4", norm=(), modules=_NORM_BEHIND)
COHERE = _family("cohere")
GRANITE = _family("granite", modules=dataclasses.replace(_DENSE, factor="residual_multiplier"))
GRANITE_MOE = _family("granitemoe", modules=dataclasses.replace(_EXPERTS, factor="residual_multiplier"))
GLM = _family("glm", dims=_heads_of(128))
GLM4 = _family("glm4", dims=_heads_of(128), modules=dataclasses.replace(_DENSE, norm_behind="post_self_attn_layernorm"))
# Nemotron's norm multiplies by 1 + weight.
NEMOTRON = _family("nemotron", norm_offset=1.0)
SMOLLM3 = _family("smollm3")
GPT_OSS = _family("gpt-oss", modules=_EXPERTS, dims=_heads_of(64))
