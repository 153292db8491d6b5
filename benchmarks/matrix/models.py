"""The one table of tiny random model families. A new family is one row; it meets every exporter that takes its kind.

The module is imported under transformers 4 and 5, hence class names instead of classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["decoder", "encoder", "vision", "speech"]

N_LAYERS = 4
D_MODEL = 64
HEAD_SIZE = 16
VOCAB = 128
MAX_POSITIONS = 128
IMAGE_SIZE = 16
N_CLASSES = 10
# Large enough that attention moves the outputs by far more than any tolerance: a surgery that does nothing must fail.
WEIGHT_STD = 0.2
SEED = 0

_O_PROJ = ("layers.{i}.self_attn.o_proj",)
_OUT_PROJ = ("layers.{i}.self_attn.out_proj",)
_H_C_PROJ = ("h.{i}.attn.c_proj",)
_BERT = ("layer.{i}.attention.output.dense", "layers.{i}.attention.o_proj", "layer.{i}.attention.o_proj")
_SLIDING: dict[str, Any] = {"sliding_window": 4}
_TWO_HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 2,
    **_MOE,
}


@dataclass(frozen=True)
class Family:
    """One row: transformers classes by name, what differs from the common dimensions, and where attention exits.

    ``exits`` maps a stack of layers ("" where there is only one) to module name endings, ``{i}`` being the layer; they
    are alternatives, for modules that transformers 5 renamed. All parameters of that module zeroed, the sublayer adds
    nothing: no family here has a bias behind it (the norms of sandwich blocks are RMS norms, which map 0 to 0).
    """

    name: str
    config_class: str
    model_class: str
    exits: dict[str, tuple[str, ...]]
    kind: Kind = "decoder"
    extra: dict[str, Any] = field(default_factory=dict)
    attention: str | None = None
    versions: tuple[int, ...] = (4, 5)

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the layer stacks: ("",), or encoder and decoder."""
        return tuple(self.exits)

    @property
    def head_size(self) -> int:
        """Length of a key, where the family's cache holds whole keys."""
        size: int = self.extra.get("head_dim", HEAD_SIZE)
        return size

    def config(self) -> Any:
        """The transformers config of the row."""
        import transformers

        config = getattr(transformers, self.config_class)(**{**_COMMON[self.kind], **self.extra})
        if self.attention is not None:
            config._attn_implementation = self.attention
        return config

    def make(self, seed: int = SEED) -> Any:
        """A random fp32 model in eval mode, without dropout.

        Every parameter is drawn here, norm weights and biases too: ones and zeros hide mistakes, and the initialisers
        of the framework differ by version.
        """
        import torch
        import transformers

        model = getattr(transformers, self.model_class)(self.config()).float().eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if parameter.dim() >= 2:
                    parameter.normal_(0.0, WEIGHT_STD, generator=generator)
                elif name.endswith(("weight", "lambda1")):
                    parameter.uniform_(0.5, 1.5, generator=generator)
                else:
                    parameter.normal_(0.0, WEIGHT_STD, generator=generator)
        return model

    def attention_exits(self, model: Any, stack: str = "") -> tuple[dict[str, Any], ...]:
        """For each self-attention sublayer of a stack, in order: the parameters that silence it when zeroed, by name.

        Raises:
            LookupError: the model does not have one exit in each layer.
        """
        modules = dict(model.named_modules())
        exits: list[dict[str, Any]] = []
        for layer in range(N_LAYERS):
            endings = tuple("." + ending.format(i=layer) for ending in self.exits[stack])
            found = [name for name in modules if ("." + name).endswith(endings)]
            if len(found) != 1:
                raise LookupError(f"{self.name}: layer {layer} has {len(found)} modules that end in {endings}")
            exits.append({f"{found[0]}.{name}": value for name, value in modules[found[0]].named_parameters()})
        return tuple(exits)

    def silence(self, model: Any, layers: tuple[int, ...], stack: str = "") -> None:
        """Zero the attention exits of these layers, in place."""
        import torch

        exits = self.attention_exits(model, stack)
        with torch.no_grad():
            for layer in layers:
                for parameter in exits[layer].values():
                    parameter.zero_()


_TRANSFORMER: dict[str, Any] = {
    "num_hidden_layers": N_LAYERS,
    "hidden_size": D_MODEL,
    "intermediate_size": 2 * D_MODEL,
    "num_attention_heads": 4,
}
_TOKENS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_COMMON: dict[Kind, dict[str, Any]] = {
    "decoder": {**_TRANSFORMER, **_TOKENS, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "encoder": {**_TRANSFORMER, **_TOKENS},
    "vision": {**_TRANSFORMER, "image_size": IMAGE_SIZE, "patch_size": 4, "num_labels": N_CLASSES},
    "speech": {
        "d_model": D_MODEL,
        "encoder_layers": N_LAYERS,
        "decoder_layers": N_LAYERS,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * D_MODEL,
        "decoder_ffn_dim": 2 * D_MODEL,
        "num_mel_bins": 8,
        "max_source_positions": 16,
        "max_target_positions": MAX_POSITIONS,
        "vocab_size": VOCAB,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "decoder_start_token_id": 3,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        "tie_word_embeddings": False,
    },
}


def _decoder(
    name: str, stem: str, exits: tuple[str, ...] = _O_PROJ, model_class: str | None = None, **extra: Any
) -> Family:
    attention = extra.pop("attention", None)
    return Family(
        name, f"{stem}Config", model_class or f"{stem}ForCausalLM", {"": exits}, extra=extra, attention=attention
    )


FAMILIES: tuple[Family, ...] = (
    _decoder("llama-mha", "Llama", num_key_value_heads=4),
    _decoder("llama-gqa", "Llama"),
    _decoder("mistral", "Mistral", **_SLIDING),
    _decoder("mixtral", "Mixtral", sliding_window=None, num_local_experts=4, num_experts_per_tok=2),
    _decoder("qwen2", "Qwen2"),
    _decoder("qwen3", "Qwen3", head_dim=32),
    _decoder("qwen3-moe", "Qwen3Moe", head_dim=16, num_experts=4, **_MOE),
    _decoder("gemma", "Gemma", head_dim=16),
    # sdpa leaves the soft cap of the scores out.
    _decoder("gemma2", "Gemma2", head_dim=16, query_pre_attn_scalar=16, attention="eager", **_SLIDING),
    _decoder(
        "gemma3",
        "Gemma3Text",
        model_class="Gemma3ForCausalLM",
        head_dim=16,
        query_pre_attn_scalar=16,
        layer_types=_ALTERNATING,
        **_SLIDING,
    ),
    # GroupQueryAttention rotates multiples of 16 only: half of each head of 32.
    _decoder("phi", "Phi", ("layers.{i}.self_attn.dense",), **_TWO_HEADS),
    _decoder("phi3", "Phi3", sliding_window=None),
    _decoder("gpt2", "GPT2", _H_C_PROJ, "GPT2LMHeadModel"),
    _decoder(
        "gpt-neo",
        "GPTNeo",
        ("h.{i}.attn.attention.out_proj",),
        num_layers=N_LAYERS,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=4,
    ),
    _decoder("gptj", "GPTJ", ("h.{i}.attn.out_proj",), rotary_dim=8),
    _decoder("codegen", "CodeGen", ("h.{i}.attn.out_proj",), rotary_dim=8),
    _decoder("gpt-neox", "GPTNeoX", ("layers.{i}.attention.dense",)),
    _decoder("gpt-neox-sequential", "GPTNeoX", ("layers.{i}.attention.dense",), use_parallel_residual=False),
    _decoder("gpt-bigcode", "GPTBigCode", _H_C_PROJ, multi_query=True),
    _decoder("opt", "OPT", _OUT_PROJ, word_embed_proj_dim=D_MODEL, ffn_dim=2 * D_MODEL),
    _decoder("bloom", "Bloom", ("h.{i}.self_attention.dense",)),
    _decoder("falcon", "Falcon", ("h.{i}.self_attention.dense",), multi_query=False, parallel_attn=True, bias=True),
    _decoder("falcon-mqa", "Falcon", ("h.{i}.self_attention.dense",), multi_query=True, parallel_attn=True),
    _decoder("falcon-new", "Falcon", ("h.{i}.self_attention.dense",), new_decoder_architecture=True, num_kv_heads=2),
    _decoder(
        "falcon-rw",
        "Falcon",
        ("h.{i}.self_attention.dense",),
        multi_query=False,
        parallel_attn=False,
        alibi=True,
        bias=True,
    ),
    _decoder(
        "mpt",
        "Mpt",
        ("blocks.{i}.attn.out_proj",),
        d_model=D_MODEL,
        n_heads=4,
        n_layers=N_LAYERS,
        expansion_ratio=2,
        max_seq_len=MAX_POSITIONS,
    ),
    _decoder("stablelm", "StableLm", use_qkv_bias=True),
    _decoder("starcoder2", "Starcoder2", sliding_window=None),
    _decoder("olmo", "Olmo"),
    _decoder("olmo2", "Olmo2"),
    _decoder("cohere", "Cohere"),
    _decoder("cohere2", "Cohere2", head_dim=16, layer_types=_ALTERNATING, **_SLIDING),
    _decoder(
        "granite",
        "Granite",
        residual_multiplier=0.5,
        attention_multiplier=0.25,
        embedding_multiplier=2.0,
        logits_scaling=2.0,
    ),
    _decoder(
        "granitemoe",
        "GraniteMoe",
        num_local_experts=4,
        num_experts_per_tok=2,
        residual_multiplier=0.5,
        attention_multiplier=0.25,
    ),
    _decoder("glm4", "Glm4", head_dim=16),
    _decoder("nemotron", "Nemotron", **_TWO_HEADS),
    _decoder("smollm3", "SmolLM3", no_rope_layer_interval=2),
    _decoder("exaone4", "Exaone4", layer_types=_ALTERNATING, **_SLIDING),
    _decoder(
        "gpt-oss",
        "GptOss",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=_ALTERNATING,
        **_SLIDING,
    ),
    _decoder("deepseek-v2", "DeepseekV2", **_MLA),
    _decoder("deepseek-v3", "DeepseekV3", n_group=1, topk_group=1, **_MLA),
    Family("bert", "BertConfig", "BertModel", {"": _BERT}, "encoder"),
    Family("roberta", "RobertaConfig", "RobertaForMaskedLM", {"": _BERT}, "encoder"),
    Family(
        "distilbert",
        "DistilBertConfig",
        "DistilBertModel",
        {"": ("layer.{i}.attention.out_lin", "layers.{i}.attention.o_proj")},
        "encoder",
        {"n_layers": N_LAYERS, "n_heads": 4, "dim": D_MODEL, "hidden_dim": 2 * D_MODEL},
    ),
    Family(
        "modernbert",
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {"": ("layers.{i}.attn.Wo",)},
        "encoder",
        {
            "global_attn_every_n_layers": 2,
            "local_attention": 8,
            "cls_token_id": 0,
            "sep_token_id": 1,
            "reference_compile": False,
        },
    ),
    Family("vit", "ViTConfig", "ViTForImageClassification", {"": _BERT}, "vision"),
    Family("dinov2", "Dinov2Config", "Dinov2ForImageClassification", {"": _BERT}, "vision", {"mlp_ratio": 2}),
    Family("clip-vision", "CLIPVisionConfig", "CLIPVisionModel", {"": _OUT_PROJ}, "vision"),
    Family("siglip-vision", "SiglipVisionConfig", "SiglipVisionModel", {"": _OUT_PROJ}, "vision"),
    Family(
        "whisper",
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            "encoder": ("encoder.layers.{i}.self_attn.out_proj",),
            "decoder": ("decoder.layers.{i}.self_attn.out_proj",),
        },
        "speech",
    ),
)
NAMES: tuple[str, ...] = tuple(family.name for family in FAMILIES)


def family(name: str) -> Family:
    """The row of that name.

    Raises:
        KeyError: no such row; the message lists those that exist.
    """
    for row in FAMILIES:
        if row.name == name:
            return row
    raise KeyError(f"no family {name}; there are: {', '.join(NAMES)}")
