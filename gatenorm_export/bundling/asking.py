"""The question for each kind of model: decoders go on with a prompt, encoders and towers give vectors or classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.bundling.probe import (
    ANSWER_TOKENS,
    Asked,
    ProbeResult,
    difference_of,
    judged,
    span_of,
    spread_tokens,
    tolerance_of,
)
from gatenorm_export.bundling.stepping import Stepper
from gatenorm_export.errors import InputError
from gatenorm_export.kinds import SPEECH_GRAPHS, KindName
from gatenorm_export.model_configs import ModelConfigs
from gatenorm_export.records import BundleGraph, BundleProbe, Decoding

PROMPT_TOKENS, PADDING_TOKENS, ROWS_OF_AN_OUTPUT = 12, 5, 4


@dataclasses.dataclass(frozen=True)
class Question:
    """A graph on disk, open in ``session``, and what the bundle tells of it; ``recorded`` is its earlier answer."""

    task: KindName
    path: Path
    session: Any
    graph: BundleGraph
    decoding: Decoding | None
    configs: ModelConfigs
    recorded: BundleProbe | None = None


def ask(question: Question) -> ProbeResult | str:
    """The answer, or why this graph cannot be asked.

    Raises:
        InputError: the config does not tell what to feed.
    """
    if question.task == "decoder" and question.decoding is None:
        return "it cannot be stepped token by token"
    asked = _ASKS[question.task](question)
    return judged(asked, tolerance_of(question.graph))


def _ask_decoder(question: Question) -> Asked:
    """A prompt is continued greedily on the cache, and everything is fed at once in the end."""
    decoding, recorded = question.decoding, question.recorded
    assert decoding is not None
    room = (decoding.max_positions or PROMPT_TOKENS + ANSWER_TOKENS) - ANSWER_TOKENS
    length = max(1, min(PROMPT_TOKENS, room))
    prompt = recorded.prompt if recorded else tuple(spread_tokens(length, decoding.vocab_size))
    stepper = Stepper(question.session, decoding)
    return _continued(stepper.begin, stepper.step, prompt, recorded)


def _continued(
    begin: Callable[[], None],
    step: Callable[[list[int]], np.ndarray],
    prompt: tuple[int, ...],
    recorded: BundleProbe | None,
) -> Asked:
    """Continue a prompt: along the recorded answer where there is one, else with the likeliest token each time."""
    known = recorded.answer if recorded else ()
    begin()
    steps = [step(list(prompt))]
    answer = [known[0] if known else int(steps[0][-1].argmax())]
    for index in range(1, len(known) or ANSWER_TOKENS):
        steps.append(step(answer[-1:]))
        answer.append(known[index] if known else int(steps[-1][-1].argmax()))
    begin()
    whole, stepped = step([*prompt, *answer[:-1]]), np.concatenate(steps)
    # Some graphs give the logits of the last token alone.
    shared = min(len(whole), len(stepped))
    span = span_of(stepped)
    return Asked(
        prompt=prompt,
        answer=tuple(answer),
        rows=tuple(logits[-1] / span for logits in steps),
        difference=difference_of(stepped[-shared:], whole[-shared:]),
        otherwise="fed at once instead of token by token",
    )


def _ask_encoder(question: Question) -> Asked:
    """A row of tokens alone, and again beside a longer one, so that it is padded."""
    from gatenorm_export.comparing.forward import ForwardGraph, token_feed

    configs, padding = question.configs, question.configs.token("pad_token_id") or 0
    vocabulary = configs.vocab_size
    if vocabulary is None:
        raise InputError(f"{question.path.parent}: no config tells how many tokens there are")
    room = (configs.max_positions or PROMPT_TOKENS + PADDING_TOKENS) - padding - 1
    length = max(1, min(PROMPT_TOKENS, room - PADDING_TOKENS))
    tokens = spread_tokens(length + PADDING_TOKENS, vocabulary, avoided=padding)
    row, longer = np.array(tokens[:length]), np.array(tokens)
    runner = ForwardGraph(question.path, question.session)
    alone, beside = runner.run(token_feed([row], padding)), runner.run(token_feed([longer, row], padding))
    outputs = runner.outputs
    return _vectors(
        tuple(tokens[:length]),
        [_of_row(alone[name], 0, length) for name in outputs],
        [_of_row(beside[name], 1, length) for name in outputs],
        question.recorded,
        "padded instead of alone",
    )


def _ask_vision(question: Question) -> Asked:
    """An image alone, and again beside another one."""
    from gatenorm_export.comparing.forward import PIXELS, ForwardGraph

    shape = _image_shape(question)
    runner = ForwardGraph(question.path, question.session)
    images = np.stack([_waves(shape, 0.37), _waves(shape, 0.53)])
    alone, beside = runner.run({PIXELS: images[1:]}), runner.run({PIXELS: images})
    return _vectors(
        (),
        [alone[name][0] for name in runner.outputs],
        [beside[name][1] for name in runner.outputs],
        question.recorded,
        "in a batch instead of alone",
    )


def _ask_speech(question: Question) -> Asked:
    """A sound is encoded, alone and beside another one, and the decoder goes on over its states."""
    from gatenorm_export.comparing.speech import SpeechDecoder, SpeechEncoder

    folder = question.path.parent
    encoder = SpeechEncoder(folder / SPEECH_GRAPHS["encoder"])
    bins, frames = _frames(encoder, question.configs)
    sounds = np.stack([_waves((bins, frames), 0.37), _waves((bins, frames), 0.53)])
    states = encoder.run(sounds[1:])
    decoder = SpeechDecoder(folder / SPEECH_GRAPHS["decoder"])
    start = question.configs.token("decoder_start_token_id") or 0
    prompt = question.recorded.prompt if question.recorded else (start,)
    asked = _continued(
        lambda: decoder.begin(states), lambda tokens: decoder.step(np.array([tokens]))[0], prompt, question.recorded
    )
    encoded = difference_of(states, encoder.run(sounds)[1:])
    return dataclasses.replace(asked, difference=max(asked.difference, encoded))


_ASKS: dict[KindName, Callable[[Question], Asked]] = {
    "decoder": _ask_decoder,
    "encoder": _ask_encoder,
    "vision": _ask_vision,
    "speech": _ask_speech,
}


def _vectors(
    prompt: tuple[int, ...],
    alone: list[np.ndarray],
    beside: list[np.ndarray],
    recorded: BundleProbe | None,
    otherwise: str,
) -> Asked:
    """Of each output the largest element along the last axis, at its first places."""
    # Every output has a range of its own; the widest must not hide what the others do.
    rows = tuple(
        row / span_of(output) for output in alone for row in output.reshape(-1, output.shape[-1])[:ROWS_OF_AN_OUTPUT]
    )
    difference = max(difference_of(first, second) for first, second in zip(alone, beside, strict=True))
    answer = recorded.answer if recorded else tuple(int(row.argmax()) for row in rows)
    return Asked(prompt, answer, rows, difference, otherwise)


def _of_row(output: np.ndarray, row: int, length: int) -> np.ndarray:
    """One row of a batch, without what stands for padding."""
    return output[row, :length] if output.ndim == 3 else output[row]


def _waves(shape: tuple[int, ...], step: float) -> np.ndarray:
    """Numbers between -1 and 1 without chance."""
    return np.asarray(np.sin(step * np.arange(int(np.prod(shape)))).reshape(shape), np.float32)


def _image_shape(question: Question) -> tuple[int, int, int]:
    """Channels, height and width: the graph's where it fixes them, else the config's."""
    fixed = next(spec.shape for spec in question.graph.inputs if spec.name == "pixel_values")[1:]
    size, channels = question.configs.image_size, question.configs.number("num_channels")
    found = [length if isinstance(length, int) else told for length, told in zip(fixed, (channels, *size), strict=True)]
    if None in found or len(found) != 3:
        raise InputError(f"{question.path.parent}: neither graph nor config tells the size of an image")
    return tuple(int(length) for length in found if length is not None)  # type: ignore[return-value]


def _frames(encoder: Any, configs: ModelConfigs) -> tuple[int, int]:
    shape = encoder.session.get_inputs()[0].shape
    positions = configs.number("max_source_positions")
    bins = shape[1] if isinstance(shape[1], int) else configs.number("num_mel_bins")
    frames = shape[2] if isinstance(shape[2], int) else (2 * positions if positions is not None else None)
    if bins is None or frames is None:
        raise InputError("neither graph nor config tells the number of frames of a sound")
    return int(bins), int(frames)
