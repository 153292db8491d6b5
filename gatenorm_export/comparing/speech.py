"""Whisper's two graphs: how they are fed, and whether they are faithful."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.comparing.faithfulness import RELATIVE_TOLERANCE, summarise, what_went
from gatenorm_export.decode_signature import DTYPES, CacheInput
from gatenorm_export.errors import RefusedError
from gatenorm_export.framework import zeroed_attention
from gatenorm_export.progress import Progress
from gatenorm_export.records import Faithfulness, ModelSpec

FEATURES, STATES, TOKENS, BRANCH = "input_features", "encoder_hidden_states", "input_ids", "use_cache_branch"
PROMPT, DECODE_STEPS, CHUNK, LATE_STEPS = 4, 8, 4, 2


class SpeechEncoder:
    """The encoder's graph: mel features [batch, bins, frames] -> states [batch, positions, width].

    Raises:
        InputError: ONNX Runtime cannot load the graph.
        RefusedError: it is no speech encoder.
    """

    def __init__(self, graph: Path) -> None:
        from gatenorm_export.sessions import open_session

        self.session = open_session(graph)
        names = [entry.name for entry in self.session.get_inputs()]
        if names != [FEATURES]:
            raise RefusedError(f"{graph}: takes {', '.join(names)} where a speech encoder takes {FEATURES}")

    def run(self, features: np.ndarray) -> np.ndarray:
        """The states of a batch of features."""
        return np.asarray(self.session.run(None, {FEATURES: features})[0])


class SpeechDecoder:
    """The merged decoder's graph with its cache: of the text so far, and of the encoder's states once and for all.

    In the first step of a transcript the graph fills both; later it returns empty tensors for the encoder's, and takes
    those of the first step. A pruned graph lacks the tensors of what was removed.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
        RefusedError: it is no merged speech decoder.
    """

    def __init__(self, graph: Path) -> None:
        from gatenorm_export.sessions import open_session

        self.session = open_session(graph)
        entries = {entry.name: entry for entry in self.session.get_inputs()}
        if TOKENS not in entries or BRANCH not in entries:
            raise RefusedError(f"{graph}: takes no {TOKENS} and {BRANCH}; it is not a merged speech decoder")
        self.plain = tuple(name for name in entries if name in {TOKENS, STATES})
        self.past = tuple(
            CacheInput(
                name,
                tuple(length if isinstance(length, int) else None for length in entry.shape),
                DTYPES.get(entry.type, np.float32),
            )
            for name, entry in entries.items()
            if name not in {TOKENS, STATES, BRANCH}
        )
        self.outputs = tuple(entry.name for entry in self.session.get_outputs())
        if len(self.past) != len(self.outputs) - 1:
            raise RefusedError(
                f"{graph}: {len(self.past)} cache inputs but {len(self.outputs) - 1} cache outputs; they must pair up"
            )
        self._states = np.zeros(0)
        self._cache: list[np.ndarray] = []

    def begin(self, states: np.ndarray) -> None:
        """Start a transcript of what the encoder made of a sound."""
        self._states, self._cache = states, []

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Logits [batch, step, vocabulary] of the next tokens [batch, step]."""
        outputs = self.session.run(None, self.feed(tokens, self._states, self._cache))
        fresh = outputs[1:]
        if not self._cache:
            self._cache = fresh
        else:
            self._cache = [
                old if ".encoder." in entry.name else new
                for entry, old, new in zip(self.past, self._cache, fresh, strict=True)
            ]
        return np.asarray(outputs[0], np.float32)

    def feed(self, tokens: np.ndarray, states: np.ndarray, cache: list[np.ndarray]) -> dict[str, np.ndarray]:
        """All inputs of one step; an empty ``cache`` is the first step of a transcript."""
        given: dict[str, np.ndarray] = {TOKENS: tokens.astype(np.int64), STATES: states}
        feed = {name: given[name] for name in self.plain}
        past = cache or [entry.filled(len(tokens), 1) for entry in self.past]
        feed |= {entry.name: values for entry, values in zip(self.past, past, strict=True)}
        return feed | {BRANCH: np.array([bool(cache)])}


def random_features(config: Any, batch: int, seed: int = 0) -> np.ndarray:
    """Seeded features of the range that Whisper's extractor gives, [batch, bins, frames]."""
    shape = batch, config.num_mel_bins, 2 * config.max_source_positions
    return np.random.default_rng(seed).uniform(-1.0, 1.5, size=shape).astype(np.float32)


def check_speech(
    graph: Path,
    spec: ModelSpec,
    dropped: tuple[int, ...],
    model: Any,
    *,
    tower: str,
    cross: tuple[int, ...] = (),
    progress: Progress,
) -> Faithfulness:
    """Compare one of the two graphs with the same part of ``model``.

    Encoder: the states of one, two and three seeded sounds. Decoder: over the states that the framework's encoder makes
    of two sounds, a prompt of four tokens, eight decode steps with the real cache, a chunk of four, two more steps.

    Raises:
        InputError: the graph cannot be loaded.
        RefusedError: the graph is another part, or a layer does not exist.
    """
    check = _check_encoder if tower == "encoder" else _check_decoder
    with (
        progress.task("check faithfulness"),
        zeroed_attention(model, spec, dropped, tower=tower),
        zeroed_attention(model, spec, cross, tower="cross"),
    ):
        names, outputs, over = check(graph, model)
    span = float(np.ptp(np.concatenate([value.ravel() for value in outputs[0]])))
    tolerance = RELATIVE_TOLERANCE * span
    verdicts = [bool((np.abs(first - second) <= tolerance).all()) for first, second in zip(*outputs, strict=True)]
    went = what_went("attention", dropped)
    if cross:
        both = f"{went}, " if dropped else ""
        went = both + what_went("cross-attention", cross)
    what = "state" if tower == "encoder" else "logit"
    return summarise(names, outputs, verdicts, tolerance, span, went, over, what=what, with_tokens=tower != "encoder")


_Checked = tuple[tuple[str, ...], list[list[np.ndarray]], str]


def _check_encoder(graph: Path, model: Any) -> _Checked:
    import torch

    encoder = SpeechEncoder(graph)
    outputs: list[list[np.ndarray]] = [[], []]
    for batch in (1, 2, 3):
        features = random_features(model.config, batch, seed=batch)
        with torch.inference_mode():
            states = model.get_encoder()(torch.from_numpy(features)).last_hidden_state
        outputs[0].append(states.float().numpy())
        outputs[1].append(encoder.run(features))
    return ("1 sound", "2 sounds", "3 sounds"), outputs, "3 batches of sounds"


def _check_decoder(graph: Path, model: Any) -> _Checked:
    import torch
    from transformers import DynamicCache, EncoderDecoderCache

    decoder = SpeechDecoder(graph)
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        states = model.get_encoder()(torch.from_numpy(random_features(model.config, 2))).last_hidden_state
    decoder.begin(states.float().numpy())
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def reference(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            result = model(
                encoder_outputs=(states,),
                decoder_input_ids=torch.from_numpy(tokens),
                past_key_values=cache,
                use_cache=True,
            )
        return np.asarray(result.logits.float().numpy())

    names: list[str] = []
    outputs: list[list[np.ndarray]] = [[], []]

    def run(name: str, tokens: np.ndarray) -> np.ndarray:
        names.append(name)
        outputs[0].append(reference(tokens))
        outputs[1].append(decoder.step(tokens))
        return np.asarray(outputs[0][-1][:, -1:].argmax(axis=-1), np.int64)

    vocabulary = model.config.vocab_size
    greedy = run("prompt", rng.integers(0, vocabulary, size=(2, PROMPT)))
    for index in range(DECODE_STEPS):
        greedy = run(f"decode {index + 1}", greedy)
    chunk = rng.integers(0, vocabulary, size=(2, CHUNK - 1))
    greedy = run(f"chunk of {CHUNK}", np.concatenate([greedy, chunk], axis=1))
    for index in range(LATE_STEPS):
        greedy = run(f"decode {DECODE_STEPS + index + 1}", greedy)
    return tuple(names), outputs, f"a prompt and {len(names) - 1} steps with cache"


def greedy_transcript(
    step: Callable[[np.ndarray], np.ndarray], prompt: list[int], end: int | None, most: int
) -> tuple[list[int], np.ndarray]:
    """The likeliest tokens behind a prompt, up to ``end`` or ``most`` of them, and the logits [tokens, vocabulary]
    that each was chosen by. ``end`` is the last token where it comes."""
    tokens: list[int] = []
    seen: list[np.ndarray] = []
    feed = np.array([prompt], np.int64)
    while len(tokens) < most:
        seen.append(step(feed)[0, -1])
        tokens.append(int(seen[-1].argmax()))
        if tokens[-1] == end:
            break
        feed = np.array([[tokens[-1]]], np.int64)
    return tokens, np.array(seen)
