"""One framework model in three states: unpruned (the teacher), pruned, and recovered (pruned, with LoRA)."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import peft
import torch

from gatenorm_export.architectures import adapter_for
from gatenorm_export.errors import RefusedError
from gatenorm_export.framework import zeroed_attention
from gatenorm_export.records import ModelSpec
from gatenorm_export.repairs import LayerRepair
from gatenorm_export.silence import silenced

ALPHA_PER_RANK = 2
"""LoRA's update is scaled by alpha / rank = 2, whatever the rank, so that a learning rate keeps its meaning."""


class Student:
    """A model whose attention in ``layers`` is taken out of the way, with LoRA on every linear layer of its blocks.

    Attention is really skipped, which is as if its output were zeroed, and costs no time; so no LoRA sits on it. The
    base weights are frozen and there is one copy of them: with attention put back and LoRA off, the model is its own
    teacher. Call it while :meth:`unpruned` or :meth:`pruned` is in effect for the other two states.
    """

    def __init__(self, model: Any, spec: ModelSpec, layers: tuple[int, ...], *, rank: int, seed: int) -> None:
        self._spec, self._layers = spec, layers
        adapter = adapter_for(spec.architecture)
        blocks = operator.attrgetter(adapter.blocks)(model)
        parent, _, self._name = adapter.attention.rpartition(".")
        self._owners = [operator.attrgetter(parent)(blocks[i]) if parent else blocks[i] for i in layers]
        self._attention = [getattr(owner, self._name) for owner in self._owners]
        self._skipped = [_Skipped(_output_length(model, attention)) for attention in self._attention]
        self.model = model.eval().requires_grad_(False)
        self._take_out()
        targets = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name.startswith(f"{adapter.blocks}.")
        ]
        if not targets:
            raise RefusedError(f"{spec.name}: its blocks have no linear layers left that LoRA could sit on")
        config = peft.LoraConfig(
            r=rank, lora_alpha=ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules=targets, bias="none"
        )
        with torch.random.fork_rng(devices=[]), silenced():
            torch.manual_seed(seed)
            self._peft = peft.PeftModel(model, config)
        self._peft.eval()
        self.targets = tuple(targets)
        self.parameters = [parameter for parameter in self._peft.parameters() if parameter.requires_grad]

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [batch, window, vocabulary] for ``tokens`` [batch, window], in the state that is in effect."""
        result: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return result.float()

    @contextlib.contextmanager
    def pruned(self) -> Iterator[None]:
        """Attention out, LoRA off."""
        with self._peft.disable_adapter():
            yield

    @contextlib.contextmanager
    def unpruned(self) -> Iterator[None]:
        """The checkpoint as it was: attention back, LoRA off."""
        self._put_back()
        try:
            with self._peft.disable_adapter():
                yield
        finally:
            self._take_out()

    @contextlib.contextmanager
    def repaired(self, repairs: Mapping[int, LayerRepair]) -> Iterator[None]:
        """The checkpoint with closed-form stand-ins in the place of the attention that was taken out, LoRA off."""
        with self.unpruned(), zeroed_attention(self.model, self._spec, self._layers, repairs):
            yield

    def state(self) -> list[torch.Tensor]:
        """A copy of LoRA's weights."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def restore(self, state: list[torch.Tensor]) -> None:
        """Put a copy of LoRA's weights back."""
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, state, strict=True):
                parameter.copy_(kept)

    def merge(self) -> Any:
        """The plain model with LoRA added to its weights and attention back, untouched; the student is used up."""
        with silenced():
            model = self._peft.merge_and_unload()
        self._put_back()
        return model

    def _take_out(self) -> None:
        for owner, skipped in zip(self._owners, self._skipped, strict=True):
            setattr(owner, self._name, skipped)

    def _put_back(self) -> None:
        for owner, attention in zip(self._owners, self._attention, strict=True):
            setattr(owner, self._name, attention)


class _Skipped(torch.nn.Module):  # type: ignore[misc]
    """In the place of an attention module: zeros, in the form that the block unpacks."""

    def __init__(self, length: int | None) -> None:
        super().__init__()
        self._length = length

    def forward(self, *arguments: Any, **named: Any) -> Any:
        hidden = named["hidden_states"] if "hidden_states" in named else arguments[0]
        zeros = torch.zeros_like(hidden)
        return zeros if self._length is None else (zeros, *[None] * (self._length - 1))


def _output_length(model: Any, attention: Any) -> int | None:
    """Of how many values an attention module's output is a tuple; None where it is a tensor."""
    seen: list[Any] = []
    handle = attention.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, 2), dtype=torch.long), use_cache=False)
    finally:
        handle.remove()
    return len(seen[0]) if isinstance(seen[0], tuple) else None
