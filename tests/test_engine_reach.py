"""What an engine's profiles take, as clients and checks read it off the record."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import onnx
import pytest
from engine_cases import write_graph

from gatenorm_export.building import ShapeRequest, make_profiles
from gatenorm_export.building.reach import StepRange, context_of, step_ranges
from gatenorm_export.comparing.engine_steps import make_steps
from gatenorm_export.records import Profile

EVERY = (0, 2**31 - 1)


def profiles_of(folder: Path, request: ShapeRequest, *without: str) -> tuple[Profile, ...]:
    graph = write_graph(folder / "g.onnx")
    model = onnx.load(str(graph))
    profiles = make_profiles(graph, request)
    assert {entry.name for entry in model.graph.input} >= set(without)
    return tuple(
        profile.model_copy(update={"bounds": tuple(bound for bound in profile.bounds if bound.input not in without)})
        for profile in profiles
    )


def test_bounds_become_steps_onto_caches(tmp_path: Path) -> None:
    profiles = profiles_of(tmp_path, ShapeRequest(batch=2, prompt=8, context=32))
    assert step_ranges(profiles) == {
        "prefill": StepRange((1, 8), (0, 24), (1, 32)),
        "decode": StepRange((1, 2), (1, 31), (2, 33)),
    }
    decode = step_ranges(profiles)["decode"]
    assert [decode.takes(1, 31), decode.takes(1, 32), decode.takes(3, 4), decode.takes(1, 0)] == [True] + 3 * [False]
    # A prompt as long as the context leaves prefill no cache; which length is the past shows beside decode.
    assert step_ranges(profiles_of(tmp_path, ShapeRequest(prompt=32, context=32)))["prefill"].past == (0, 0)


@pytest.mark.parametrize(
    ("without", "context"),
    [((), 32), (("attention_mask",), 32), (("past_key_values.0.key",), 32)],
    ids=str,
)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_the_context_is_told_by_caches_or_by_a_mask(tmp_path: Path, without: Any, context: int, step: int) -> None:
    request = ShapeRequest(prompt=8, context=context, decode_step=step)
    assert context_of(profiles_of(tmp_path, request, *without)) == context


def test_without_caches_and_mask_nothing_tells(tmp_path: Path) -> None:
    profiles = profiles_of(tmp_path, ShapeRequest(), "attention_mask", "past_key_values.0.key")
    assert context_of(profiles) is None
    assert step_ranges(profiles)["decode"] == StepRange((1, 2), EVERY, EVERY)
    assert context_of(profiles[:1]) is None


@pytest.mark.parametrize("without", [(), ("attention_mask",)], ids=str)
@pytest.mark.parametrize(("prompt", "context"), [(16, 40), (39, 40), (40, 40), (12, 13), (2, 3), (1, 8)])
def test_every_step_of_the_accuracy_check_is_one_that_a_profile_takes(
    tmp_path: Path, prompt: int, context: int, without: tuple[str, ...]
) -> None:
    """Also where prefill leaves no room behind its prompt, and where the graph has no mask to count by."""
    profiles = profiles_of(tmp_path, ShapeRequest(prompt=prompt, context=context), *without)
    plain = tuple(name for name in ("input_ids", "attention_mask") if name not in without)
    names, feeds = make_steps(cast(Any, SimpleNamespace(plain=plain)), 50, profiles)
    ranges = step_ranges(profiles)
    for name, feed in zip(names, feeds, strict=True):
        step, total = feed["input_ids"].shape[1], feed["attention_mask"].shape[1]
        assert total <= context, name
        assert any(part.takes(step, total - step) for part in ranges.values()), name
    assert any(name.startswith("decode") for name in names) == (context > 2)
    assert any(name.startswith("chunk") for name in names) == (prompt > 4)
