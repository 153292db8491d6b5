"""Models without a cache, text encoders and vision towers: how a graph is fed, and whether it is faithful."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.comparing.faithfulness import RELATIVE_TOLERANCE, summarise, what_went
from gatenorm_export.errors import RefusedError
from gatenorm_export.framework import zeroed_attention
from gatenorm_export.progress import Progress
from gatenorm_export.records import Faithfulness, ModelSpec
from gatenorm_export.sessions import open_session

TOKENS, MASK, TYPES, POSITIONS, PIXELS = "input_ids", "attention_mask", "token_type_ids", "position_ids", "pixel_values"
SHAPES = ((2, 24, 17), (1, 1, 1), (3, 40, 9))
"""Batches of the check: rows, the longest row in tokens, and the length of the last row, whose end is padding."""

Feed = dict[str, np.ndarray]


class ForwardGraph:
    """A graph that maps inputs to outputs, on ONNX Runtime's CPU provider; ``session`` is one that has it open already.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
        RefusedError: it takes an input that this kind of model does not have, such as a KV cache.
    """

    def __init__(self, graph: Path, session: Any = None) -> None:
        self.session = session if session is not None else open_session(graph)
        self.inputs = {entry.name: entry.shape for entry in self.session.get_inputs()}
        self.outputs = tuple(entry.name for entry in self.session.get_outputs())
        unknown = sorted(set(self.inputs) - {TOKENS, MASK, TYPES, POSITIONS, PIXELS})
        if unknown:
            raise RefusedError(f"{graph}: takes {unknown[0]}, which no text encoder or vision tower takes")

    def run(self, feed: Feed) -> Feed:
        """All outputs by name, in float32; inputs that the graph does not take are left out."""
        values = self.session.run(None, {name: feed[name] for name in self.inputs})
        return {name: np.asarray(value, np.float32) for name, value in zip(self.outputs, values, strict=True)}


def token_feed(rows: list[np.ndarray], padding: int) -> Feed:
    """The feed for token rows of several lengths, padded on the right: tokens, mask, types and positions."""
    longest = max(map(len, rows))
    tokens = np.full((len(rows), longest), padding, np.int64)
    mask = np.zeros_like(tokens)
    for row, values in enumerate(rows):
        tokens[row, : len(values)] = values
        mask[row, : len(values)] = 1
    positions = np.broadcast_to(np.arange(longest), tokens.shape).copy()
    return {TOKENS: tokens, MASK: mask, TYPES: np.zeros_like(tokens), POSITIONS: positions}


def check_forward(
    graph: Path,
    spec: ModelSpec,
    dropped: tuple[int, ...],
    model: Any,
    *,
    tower: str,
    cross: tuple[int, ...] = (),
    progress: Progress,
) -> Faithfulness:
    """Compare every output of the graph with that of ``model``, on several batches; padding is nobody's business.

    Text: random tokens, rows of different lengths with padding. Images: noise, in batches of one to three.

    Raises:
        InputError: the graph cannot be loaded.
        RefusedError: the graph has other inputs or outputs than the model, or a layer does not exist.
    """
    if cross:
        raise RefusedError(f"{graph}: {spec.architecture} has no cross-attention")
    outputs: list[list[np.ndarray]] = [[], []]
    names: list[str] = []
    with progress.task("check faithfulness"), zeroed_attention(model, spec, dropped, tower=tower):
        runner = ForwardGraph(graph)
        for name, feed in _feeds(model, runner):
            expected, got = _framework(model, feed, runner, graph), runner.run(feed)
            for output in runner.outputs:
                if expected[output].shape != got[output].shape:
                    raise RefusedError(
                        f"{graph}: {output} is {list(got[output].shape)}, the framework gives "
                        f"{list(expected[output].shape)}"
                    )
                names.append(f"{name}, {output}")
                outputs[0].append(_shown(expected[output], feed))
                outputs[1].append(_shown(got[output], feed))
    # Each output has a range of its own, the smallest of which is the strictest.
    spans = [
        np.ptp(np.concatenate([v.ravel() for v in outputs[0][i :: len(runner.outputs)]]))
        for i in range(len(runner.outputs))
    ]
    span = float(min(spans))
    tolerance = RELATIVE_TOLERANCE * span
    verdicts = [bool((np.abs(first - second) <= tolerance).all()) for first, second in zip(*outputs, strict=True)]
    over = f"{len(names) // len(runner.outputs)} batches of " + ("images" if PIXELS in runner.inputs else "padded text")
    what = "logit" if runner.outputs == ("logits",) else "output"
    went = what_went("attention", dropped)
    return summarise(tuple(names), outputs, verdicts, tolerance, span, went, over, what=what, with_tokens=False)


def _feeds(model: Any, runner: ForwardGraph, seed: int = 0) -> Iterator[tuple[str, Feed]]:
    rng, config = np.random.default_rng(seed), model.config
    if PIXELS in runner.inputs:
        for rows in (1, 2, 3):
            pixels = rng.normal(size=(rows, *image_shape(config))).astype(np.float32)
            yield f"{rows} image{'s' if rows > 1 else ''}", {PIXELS: pixels}
        return
    padding = padding_token(config)
    for rows, longest, last in SHAPES:
        longest = min(longest, longest_text(config))
        lengths = [longest] * (rows - 1) + [min(last, longest)]
        # Some families count positions by which tokens are padding, so padding may not be drawn as text.
        texts = [_tokens(rng, length, config.vocab_size, padding) for length in lengths]
        yield f"{rows} x {longest} tokens", token_feed(texts, padding)


def _tokens(rng: np.random.Generator, length: int, vocabulary: int, padding: int) -> np.ndarray:
    drawn = rng.integers(0, vocabulary - 1, size=length)
    return np.asarray(drawn + (drawn >= padding))


def padding_token(config: Any) -> int:
    """The token that stands for nothing; 0 where the config names none."""
    token = getattr(config, "pad_token_id", None)
    return int(token) if isinstance(token, int) and token >= 0 else 0


def longest_text(config: Any) -> int:
    """How many tokens a text encoder takes; RoBERTa's first positions stand for padding."""
    positions = int(getattr(config, "max_position_embeddings", 512) or 512)
    return positions - padding_token(config) - 1 if "roberta" in config.model_type else positions


def image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images that a vision tower takes."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(config.num_channels), int(height), int(width)


def _framework(model: Any, feed: Feed, runner: ForwardGraph, graph: Path) -> Feed:
    import torch

    with torch.inference_mode():
        result = model(**{name: torch.from_numpy(feed[name]) for name in runner.inputs})
    lacking = [name for name in runner.outputs if result.get(name) is None]
    if lacking:
        raise RefusedError(f"{graph}: has the output {lacking[0]}, {type(model).__name__} gives {', '.join(result)}")
    return {name: result[name].float().numpy() for name in runner.outputs}


def _shown(values: np.ndarray, feed: Feed) -> np.ndarray:
    """The values without those of padding: where values run along the tokens, zeros stand there."""
    mask = feed.get(MASK)
    if mask is None or values.shape[:2] != mask.shape:
        return values
    # where, not a product: a NaN computed for padding must not spread.
    return np.where(mask.reshape(*mask.shape, *(1 for _ in values.shape[2:])) != 0, values, np.float32(0.0))
