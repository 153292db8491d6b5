"""The one table of tiny random decoders that every law runs over. A new family is one row and inherits all laws."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

N_LAYERS = 4
D_MODEL = 64
VOCAB = 128
MAX_POSITIONS = 128
# Large enough that attention moves the logits by far more than the tolerance of any check: a surgery that does
# nothing must fail.
INITIALIZER_RANGE = 0.2


@dataclass(frozen=True)
class TinyModel:
    """One row: a transformers config class and model class by name, and what differs from the common dimensions."""

    name: str
    config_class: str
    model_class: str
    n_heads: int
    n_kv_heads: int
    head_dim: int
    extra: dict[str, Any] = field(default_factory=dict)

    n_layers: int = N_LAYERS
    d_model: int = D_MODEL
    vocab: int = VOCAB

    def config(self) -> Any:
        """The transformers config of the row."""
        import transformers

        common = {
            "num_hidden_layers": self.n_layers,
            "hidden_size": self.d_model,
            "intermediate_size": 2 * self.d_model,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": MAX_POSITIONS,
            "initializer_range": INITIALIZER_RANGE,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }
        return getattr(transformers, self.config_class)(**{**common, **self.extra})

    def make(self, seed: int = 0) -> Any:
        """A random fp32 model in eval mode; norm weights and biases are random too: ones and zeros hide mistakes."""
        import torch
        import transformers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, self.model_class)(self.config())
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith("bias"):
                        parameter.normal_(0.0, 0.2)
                    elif "norm" in name:
                        parameter.uniform_(0.5, 1.5)
        return model.float().eval()

    def save(self, folder: Path, *, seed: int = 0, max_shard_size: str | int | None = None, dtype: Any = None) -> Path:
        """Write config, safetensors and tokenizer as ``from_pretrained`` reads them; return the folder.

        ``dtype`` is a torch dtype or its name ("bfloat16"); ``max_shard_size`` such as "40KB" forces shards.
        """
        import torch

        model = self.make(seed)
        if dtype is not None:
            model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        model.save_pretrained(folder, safe_serialization=True, **options)
        make_tokenizer(self.vocab).save_pretrained(folder)
        return Path(folder)

    def with_layers(self, n_layers: int) -> TinyModel:
        """The same row at another depth."""
        return dataclasses.replace(self, n_layers=n_layers)


def make_tokenizer(vocab: int = VOCAB) -> Any:
    """A word-level tokenizer over ``w3 w4 ...``, the words of the vocabulary, with the row's special tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", "<unk>"] + [f"w{index}" for index in range(4, vocab)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


ZOO: tuple[TinyModel, ...] = (
    TinyModel("llama-mha", "LlamaConfig", "LlamaForCausalLM", n_heads=4, n_kv_heads=4, head_dim=16),
    TinyModel("llama-gqa", "LlamaConfig", "LlamaForCausalLM", n_heads=4, n_kv_heads=2, head_dim=16),
    TinyModel(
        "llama-tied",
        "LlamaConfig",
        "LlamaForCausalLM",
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        extra={"tie_word_embeddings": True},
    ),
    TinyModel(
        "mistral-gqa",
        "MistralConfig",
        "MistralForCausalLM",
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        extra={"head_dim": 16, "sliding_window": None},
    ),
    TinyModel("qwen2-gqa", "Qwen2Config", "Qwen2ForCausalLM", n_heads=4, n_kv_heads=2, head_dim=16),
    TinyModel(
        "qwen3-gqa", "Qwen3Config", "Qwen3ForCausalLM", n_heads=4, n_kv_heads=2, head_dim=24, extra={"head_dim": 24}
    ),
)
NAMES: tuple[str, ...] = tuple(row.name for row in ZOO)


def row(name: str) -> TinyModel:
    """The row of that name."""
    return next(row for row in ZOO if row.name == name)
