"""Greedy tokens of the framework with branches zeroed, of optimum, and of onnxruntime-genai, for the same prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatenorm_export.framework import load_framework_model, zeroed_attention
from gatenorm_export.sources import resolve_model


def framework_tokens(model: str, dropped: tuple[int, ...], prompt: list[int], new: int) -> list[int]:
    import torch

    spec = resolve_model(model)
    loaded, _ = load_framework_model(spec)
    options: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode(), zeroed_attention(loaded, spec, dropped):
        found = loaded.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **options)
    return [int(token) for token in found[0]]


def optimum_tokens(folder: Path, prompt: list[int], new: int) -> list[int]:
    optimum = pytest.importorskip("optimum.onnxruntime")
    import torch

    client = optimum.ORTModelForCausalLM.from_pretrained(folder)
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    found = client.generate(
        torch.tensor([prompt]), attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
    )
    return [int(token) for token in found[0]]


def genai_tokens(folder: Path, prompt: list[int], new: int) -> list[int]:
    og = pytest.importorskip("onnxruntime_genai")
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + new, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def same_tokens(found: list[int], expected: list[int], ends: tuple[int, ...]) -> bool:
    """genai leaves out the token that ends a sequence."""
    return found == (expected[:-1] if len(found) < len(expected) and expected[-1] in ends else expected)
