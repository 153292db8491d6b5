"""What an engine's profiles take, in tokens: a step of so many onto a cache of so many."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from gatenorm_export.building.graph_inputs import MASK, TOKENS
from gatenorm_export.building.profile_files import LARGEST_LENGTH
from gatenorm_export.records import Profile, ProfileBounds

PREFILL, DECODE = "prefill", "decode"

Range = tuple[int, int]
_ANY: Range = (0, LARGEST_LENGTH)


@dataclasses.dataclass(frozen=True)
class StepRange:
    """The bounds of one profile: of the step, of the cache before it (``past``), and of both together (``total``)."""

    step: Range
    past: Range = _ANY
    total: Range = _ANY

    def takes(self, step: int, past: int) -> bool:
        """Whether the profile admits a step of ``step`` tokens onto a cache of ``past``."""
        lengths = ((self.step, step), (self.past, past), (self.total, past + step))
        return all(least <= length <= most for (least, most), length in lengths)


def step_ranges(profiles: Sequence[Profile]) -> Mapping[str, StepRange]:
    """Each profile's name and what it takes; profiles that bound no token input are left out.

    A cache is an input of more than two dimensions. Its past is the first length behind the batch that differs
    anywhere: within a profile, or between two.
    """
    bounds = {profile.name: {bound.input: bound for bound in profile.bounds} for profile in profiles}
    axes = {
        bound.input: axis
        for profile in profiles
        for bound in profile.bounds
        if len(bound.min) > 2
        for axis in [_past_axis([inputs[bound.input] for inputs in bounds.values() if bound.input in inputs])]
        if axis is not None
    }
    found = {}
    for name, inputs in bounds.items():
        if TOKENS not in inputs or len(inputs[TOKENS].min) != 2:
            continue
        pasts = [_range(inputs[entry], axis) for entry, axis in axes.items() if entry in inputs]
        past = (max(least for least, _ in pasts), min(most for _, most in pasts)) if pasts else _ANY
        total = _range(inputs[MASK], 1) if MASK in inputs else _ANY
        found[name] = StepRange(_range(inputs[TOKENS], 1), past, total)
    return found


def context_of(profiles: Sequence[Profile]) -> int | None:
    """The most tokens that a cache and the step onto it have together, by the decode profile; None: nothing tells.

    That is one token onto the longest cache. A graph without caches has only a mask, which is as long as the longest
    step onto the longest cache.
    """
    decode = step_ranges(profiles).get(DECODE)
    if decode is None or (decode.past == _ANY and decode.total == _ANY):
        return None
    if decode.past == _ANY:
        return decode.total[1] - decode.step[1] + 1
    return min(decode.past[1] + 1, decode.total[1])


def _past_axis(of_each: Sequence[ProfileBounds]) -> int | None:
    for axis in range(1, len(of_each[0].min)):
        if len({shape[axis] for bound in of_each for shape in (bound.min, bound.max)}) > 1:
            return axis
    return None


def _range(bound: ProfileBounds, axis: int) -> Range:
    return bound.min[axis], bound.max[axis]
