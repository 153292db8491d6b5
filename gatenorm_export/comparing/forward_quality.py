"""What pruning cost a text encoder or a vision tower: the pruned graph's results against the unpruned one's."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.comparing.forward import (
    MASK,
    PIXELS,
    TOKENS,
    Feed,
    ForwardGraph,
    image_shape,
    longest_text,
    padding_token,
    token_feed,
)
from gatenorm_export.comparing.images import load_images
from gatenorm_export.comparing.inputs import QualityInputs
from gatenorm_export.comparing.similarity import class_quality, embedding_quality, label_quality, score_quality
from gatenorm_export.comparing.text import load_text
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.framework import load_config, load_tokenizer
from gatenorm_export.kinds import measure_of_outputs
from gatenorm_export.progress import Progress
from gatenorm_export.records import ClassQuality, EmbeddingQuality, LabelQuality, ModelSpec, ScoreQuality

ForwardQuality = EmbeddingQuality | ClassQuality | ScoreQuality | LabelQuality

MASKED_SHARE = 0.15
"""Share of the tokens that are masked, as in BERT's own training."""

_RANDOM_ROWS, _RANDOM_LENGTH = 64, 16
_FEWEST, _WORDS_AT_MOST, _WORDS_WITHOUT_SENTENCES = 8, 64, 12
_VECTORS = ("image_embeds", "text_embeds", "pooler_output")


def encoder_quality(
    base: Path, pruned: Path, inputs: QualityInputs, spec: ModelSpec | None, *, progress: Progress
) -> ForwardQuality:
    """Judge a text encoder on the sentences of a text.

    Vectors: the model's own sentence vector, or the mean over a sentence's tokens. Classes, scores or labels of a
    sentence: its logits. Classes of tokens: the predictions at every token. Words for masked places: those at 15 % of
    the tokens, seeded, which are masked where the tokenizer has a mask. Marks such as [CLS] count for neither.

    Raises:
        InputError: the text holds too few sentences, or it was asked for and no tokenizer is there.
        RefusedError: a graph produces no finite numbers, or the unpruned one the same score for everything.
    """
    config = load_config(base.parent, spec)
    tokenizer = load_tokenizer(base.parent, spec)
    if tokenizer is None:
        if inputs.text is not None:
            raise InputError(f"{base.parent}: holds no tokenizer to read --text with; copy the model's tokenizer there")
        progress.say("no tokenizer was found: quality is measured on random tokens")
        rng = np.random.default_rng(0)
        rows = list(rng.integers(1, config.vocab_size, size=(_RANDOM_ROWS, _RANDOM_LENGTH)))
        rows = [row[: longest_text(config)] for row in rows]
        name = "random tokens (the model has no tokenizer)"
        sha256 = hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest()
    else:
        text = load_text(inputs.text)
        name, sha256 = text.name, text.sha256
        rows = _token_rows(split_sentences(text.content), tokenizer, longest_text(config), inputs.max_text_tokens)
    if len(rows) < 3:
        raise InputError(f"{name}: {len(rows)} sentences are too few to judge by; give a few kilobytes of prose")
    feeds = [token_feed([row], padding_token(config)) for row in rows]
    graphs = ForwardGraph(base), ForwardGraph(pruned)
    shape = graphs[0].session.get_outputs()[0].shape
    if graphs[0].outputs[0] == "logits" and len(shape) == 3:
        places, mask = [_free(row, tokenizer) for row in rows], None
        if shape[-1] == config.vocab_size:
            places = [_drawn(free, number) for number, free in enumerate(places)]
            mask = getattr(tokenizer, "mask_token_id", None)
        for feed, chosen in zip(feeds, places, strict=True):
            if mask is not None:
                feed[TOKENS][0, chosen] = mask
        results = _finite(_results(graphs, feeds, progress, lambda out, i: out["logits"][0, places[i]]), base, pruned)
        return _of_logits(results, None, name, sha256, "masked tokens" if mask is not None else "tokens")
    return _judged(graphs, feeds, config, name, sha256, "sentences", base, pruned, progress)


def vision_quality(
    base: Path, pruned: Path, inputs: QualityInputs, spec: ModelSpec | None, *, progress: Progress
) -> ForwardQuality:
    """Judge a vision tower on the images of a folder, or on seeded synthetic ones.

    Raises:
        InputError: an image cannot be read.
        RefusedError: a graph produces no finite numbers, or the unpruned one the same score for everything.
    """
    config = load_config(base.parent, spec)
    images = load_images(inputs.images, image_shape(config), base.parent, spec)
    feeds = [{PIXELS: pixels[None]} for pixels in images.pixels]
    graphs = ForwardGraph(base), ForwardGraph(pruned)
    return _judged(graphs, feeds, config, images.name, images.sha256, "images", base, pruned, progress)


def _judged(
    graphs: tuple[ForwardGraph, ForwardGraph],
    feeds: list[Feed],
    config: Any,
    name: str,
    sha256: str,
    items: str,
    base: Path,
    pruned: Path,
    progress: Progress,
) -> ForwardQuality:
    outputs = graphs[0].outputs
    if "logits" in outputs:
        results = _finite(_results(graphs, feeds, progress, lambda out, _: out["logits"]), base, pruned)
        return _of_logits(results, getattr(config, "problem_type", None), name, sha256, items)
    own = next((vector for vector in _VECTORS if vector in outputs), None)

    def vector(out: Feed, index: int) -> np.ndarray:
        if own is not None:
            return out[own]
        states, mask = out[outputs[0]], feeds[index].get(MASK)
        return np.asarray(states.mean(axis=1) if mask is None else states[mask != 0].mean(axis=0, keepdims=True))

    results = _results(graphs, feeds, progress, vector)
    embedding = own or f"mean of {outputs[0]}"
    finite = _finite(results, base, pruned)
    return embedding_quality(*finite, text=name, text_sha256=sha256, items=items, embedding=embedding)


def _of_logits(
    results: tuple[np.ndarray, np.ndarray], problem: object, name: str, sha256: str, items: str
) -> ForwardQuality:
    """Judge logits [items, outputs] as what they are: choices, scores or decisions on labels."""
    measure = measure_of_outputs(results[0].shape[-1], problem)
    if measure == "scores":
        return score_quality(*results, text=name, text_sha256=sha256, items=items)
    judge = label_quality if measure == "labels" else class_quality
    return judge(*results, text=name, text_sha256=sha256, items=items)


def _results(
    graphs: tuple[ForwardGraph, ForwardGraph], feeds: list[Feed], progress: Progress, pick: Any
) -> tuple[np.ndarray, np.ndarray]:
    """What ``pick`` takes of each feed's outputs, [items, size], of both graphs."""
    picked: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with progress.task("measure quality", total=len(feeds)) as bar:
        for index, feed in enumerate(feeds):
            for graph, found in zip(graphs, picked, strict=True):
                found.append(pick(graph.run(feed), index))
            bar.advance()
    return np.concatenate(picked[0]), np.concatenate(picked[1])


def _finite(results: tuple[np.ndarray, np.ndarray], base: Path, pruned: Path) -> tuple[np.ndarray, np.ndarray]:
    if not all(np.isfinite(result).all() for result in results):
        raise RefusedError(f"{base} or {pruned}: the results are not finite; the graph cannot be judged")
    return results


def split_sentences(text: str) -> list[str]:
    """Sentences of a prose; text without full stops is cut every dozen words. None is longer than 64 words."""
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])[\"')\]]*\s+|\n\s*\n", text)]
    sentences = [sentence for sentence in sentences if sentence]
    at_most = _WORDS_AT_MOST
    if len(sentences) < _FEWEST:
        sentences, at_most = [text], _WORDS_WITHOUT_SENTENCES
    cut = []
    for sentence in sentences:
        words = sentence.split()
        cut += [" ".join(words[start : start + at_most]) for start in range(0, len(words), at_most)]
    return cut


def _token_rows(sentences: list[str], tokenizer: Any, longest: int, limit: int) -> list[np.ndarray]:
    """Tokens of the sentences with the model's own marks around them, as many sentences as ``limit`` tokens hold."""
    rows, total = [], 0
    for sentence in sentences:
        row = np.array(tokenizer(sentence, truncation=True, max_length=longest, verbose=False)["input_ids"], np.int64)
        total += len(row)
        if total > limit:
            break
        if len(row):
            rows.append(row)
    return rows


def _free(row: np.ndarray, tokenizer: Any) -> np.ndarray:
    """The places of a row that hold no mark such as [CLS]; all of them where there is nothing else."""
    marks = np.array(getattr(tokenizer, "all_special_ids", None) or [], np.int64)
    free = np.flatnonzero(~np.isin(row, marks))
    return free if len(free) else np.arange(len(row))


def _drawn(free: np.ndarray, seed: int) -> np.ndarray:
    """Seeded places out of these, at least one."""
    count = max(1, round(MASKED_SHARE * len(free)))
    return np.sort(np.random.default_rng(seed).choice(free, size=count, replace=False))
