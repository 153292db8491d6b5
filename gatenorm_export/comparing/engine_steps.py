"""The steps of an engine's accuracy check: random tokens, as long and as many as its profiles take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gatenorm_export.building.reach import StepRange, context_of, step_ranges
from gatenorm_export.comparing.feeds import Feed, step_feed
from gatenorm_export.decode_signature import MASK, TOKENS, DecodeSignature
from gatenorm_export.errors import InputError
from gatenorm_export.records import Profile

PROMPT, PADDED, DECODE_STEPS, CHUNK, LATE_STEPS = 24, 7, 4, 4, 2


def make_steps(
    signature: DecodeSignature, vocabulary: int, profiles: tuple[Profile, ...] = (), seed: int = 0
) -> tuple[tuple[str, ...], list[Feed]]:
    """Names and feeds of random tokens, within what ``profiles`` take.

    Where two rows fit a batch the second one begins with padding; where only one does, it is run by itself after the
    first. Without a mask there is no padding.
    """
    batch, prompt, taken = _room(profiles)
    lengths = [prompt, max(prompt - PADDED, 1)] if MASK in signature.plain and prompt > 1 else [prompt]
    groups = [lengths] if batch >= len(lengths) else [[length] for length in lengths]
    rng, names, feeds = np.random.default_rng(seed), [], []
    for group in groups:
        suffix = ", padded" if len(groups) > 1 and group[0] < prompt else ""
        mask = np.ones((len(group), prompt), np.int64)
        for row, length in enumerate(group):
            mask[row, : prompt - length] = 0
        names.append(f"prefill{suffix}")
        feeds.append(step_feed(rng.integers(0, vocabulary, mask.shape), mask))
        decoded = 0
        for most in [*[1] * DECODE_STEPS, min(CHUNK, prompt), *[1] * LATE_STEPS]:
            past = mask.shape[1]
            # Behind a long prompt there may be room for a shorter chunk, or for none.
            step = next((step for step in range(most, 0, -1) if any(part.takes(step, past) for part in taken)), 0)
            if not step:
                break
            decoded += step == 1
            tokens = rng.integers(0, vocabulary, (len(group), step))
            mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
            names.append(f"decode {decoded}{suffix}" if step == 1 else f"chunk of {step}{suffix}")
            feeds.append(step_feed(tokens, mask))
    return tuple(names), feeds


def _room(profiles: tuple[Profile, ...]) -> tuple[int, int, tuple[StepRange, ...]]:
    """Rows and tokens of a prompt that all profiles together take, and the steps that one of them does."""
    if not profiles:
        return 2, PROMPT, (StepRange((1, PROMPT)),)
    named = {profile.name: {bound.input: bound for bound in profile.bounds} for profile in profiles}
    if not {"prefill", "decode"} <= set(named) or TOKENS not in named["prefill"]:
        raise InputError("its record names no profiles prefill and decode; build it with gatenorm build")
    batch, prompt = named["prefill"][TOKENS].max
    batch = min(batch, named["decode"][TOKENS].max[0])
    context = context_of(profiles)
    ranges = step_ranges(profiles).values()
    taken = tuple(dataclasses.replace(part, total=_within(part.total, context)) for part in ranges)
    return batch, max(min(PROMPT, prompt // 2), 1), taken


def _within(total: tuple[int, int], context: int | None) -> tuple[int, int]:
    """The mask of the decode profile goes on behind the context, where no step may lead."""
    return total if context is None else (total[0], min(total[1], context))


def vocabulary_of(session: Any, signature: DecodeSignature) -> int:
    """How many tokens there are, from the logits' shape, or else from logits."""
    shape = next(entry.shape for entry in session.get_outputs() if entry.name == signature.logits)
    if isinstance(shape[-1], int):
        return int(shape[-1])
    feed: dict[str, np.ndarray] = dict(step_feed(np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64)))
    feed = {name: feed[name] for name in signature.plain} | {entry.name: entry.empty(1) for entry in signature.past}
    return int(session.run([signature.logits], feed)[0].shape[-1])
