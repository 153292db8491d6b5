"""A tokenizer over the words w4, w5, ..., for exporters that want one beside the checkpoint."""

from __future__ import annotations

from pathlib import Path

SPECIAL = ("<s>", "</s>", "<pad>", "<unk>")


def save_tokenizer(vocabulary: int, folder: Path) -> None:
    """Write the tokenizer's files: token 0 begins, 1 ends, 2 pads, 3 is unknown."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), vocabulary))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
