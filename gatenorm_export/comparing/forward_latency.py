"""Latency of models that are no decoders: one forward pass, by length or by batch, base and pruned in turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.comparing.forward import PIXELS, ForwardGraph, image_shape, longest_text, token_feed
from gatenorm_export.comparing.latency import OpenSide, Point, measure_points
from gatenorm_export.comparing.speech import FEATURES, SpeechDecoder, random_features
from gatenorm_export.errors import needs
from gatenorm_export.framework import load_config
from gatenorm_export.progress import Progress
from gatenorm_export.records import Latency, ModelSpec
from gatenorm_export.sessions import open_session

TEXT_LENGTHS = (16, 64, 256)
IMAGE_BATCHES = (1, 4, 16)
SOUND_BATCHES = (1, 2)
TRANSCRIPT_LENGTHS = (4, 32, 128)


def encoder_latency(base: Path, pruned: Path, spec: ModelSpec | None, *, progress: Progress) -> Latency:
    """Time one text of 16, 64 and 256 tokens, as far as the model takes them.

    Raises:
        InputError: a graph cannot be loaded.
    """
    longest = longest_text(load_config(base.parent, spec))
    lengths = sorted({min(length, longest) for length in TEXT_LENGTHS})

    def feed(graph: ForwardGraph, point: Point) -> dict[str, np.ndarray]:
        # Any tokens do: the time does not depend on which they are.
        return token_feed([np.arange(point.sequence) % 97 + 3] * point.batch, 0)

    points = [Point("prefill", length) for length in lengths]
    return measure_points((base, pruned), points, _forward(feed), unit="tokens", progress=progress)


def vision_latency(base: Path, pruned: Path, spec: ModelSpec | None, *, progress: Progress) -> Latency:
    """Time batches of 1, 4 and 16 images.

    Raises:
        InputError: a graph cannot be loaded.
    """
    shape = image_shape(load_config(base.parent, spec))

    def feed(graph: ForwardGraph, point: Point) -> dict[str, np.ndarray]:
        return {PIXELS: np.zeros((point.batch, *shape), np.float32)}

    points = [Point("prefill", 1, batch) for batch in IMAGE_BATCHES]
    return measure_points((base, pruned), points, _forward(feed), unit="images", progress=progress)


def speech_latency(base: Path, pruned: Path, spec: ModelSpec | None, *, progress: Progress) -> Latency:
    """Time the encoder on batches of 1 and 2 sounds, or the decoder on transcripts of 4, 32 and 128 tokens at once.

    Raises:
        InputError: a graph cannot be loaded.
    """
    config = load_config(base.parent, spec)
    if _takes(base, FEATURES):
        points = [Point("prefill", 1, batch) for batch in SOUND_BATCHES]
        return measure_points((base, pruned), points, _sound(config), unit="sounds", progress=progress)
    lengths = sorted({min(length, config.max_target_positions) for length in TRANSCRIPT_LENGTHS})
    points = [Point("prefill", length) for length in lengths]
    return measure_points((base, pruned), points, _transcript(config), unit="tokens", progress=progress)


def _forward(feed: Callable[[ForwardGraph, Point], dict[str, np.ndarray]]) -> OpenSide:
    def open_side(graph: Path) -> Callable[[Point], Callable[[], Any]]:
        with needs("ort", "latency"):
            runner = ForwardGraph(graph)
        return lambda point: _call(runner.session, {n: v for n, v in feed(runner, point).items() if n in runner.inputs})

    return open_side


def _sound(config: Any) -> OpenSide:
    def open_side(graph: Path) -> Callable[[Point], Callable[[], Any]]:
        session = open_session(graph)
        return lambda point: _call(session, {FEATURES: random_features(config, point.batch)})

    return open_side


def _transcript(config: Any) -> OpenSide:
    states = np.zeros((1, config.max_source_positions, config.d_model), np.float32)

    def open_side(graph: Path) -> Callable[[Point], Callable[[], Any]]:
        decoder = SpeechDecoder(graph)
        return lambda point: _call(decoder.session, decoder.feed(np.arange(point.sequence)[None] % 97 + 3, states, []))

    return open_side


def _call(session: Any, feed: dict[str, np.ndarray]) -> Callable[[], Any]:
    from onnxruntime import OrtValue

    values = {name: OrtValue.ortvalue_from_numpy(value) for name, value in feed.items()}
    return lambda: session.run_with_ort_values(None, values)


def _takes(graph: Path, name: str) -> bool:
    import onnx

    return any(entry.name == name for entry in onnx.load(str(graph), load_external_data=False).graph.input)
