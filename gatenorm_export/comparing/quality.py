"""What pruning cost on a text: the pruned graph against the unpruned one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.comparing.inputs import QualityInputs
from gatenorm_export.comparing.text import Text, load_text, random_tokens, tokenize
from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.model_configs import configs_of
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import ModelSpec, Quality
from gatenorm_export.silence import silent_polygraphy

WINDOW_TOKENS = 256
"""Each window starts from nothing, and every token of it but the first is predicted."""

GREEDY_PROMPTS, GREEDY_PROMPT_TOKENS, GREEDY_TOKENS = 4, 32, 32

# Positions whose distributions are held in float64 at a time: at a vocabulary of 150k, two of these are 150 MB.
_POSITIONS_AT_ONCE = 64
_TOPS = (1, 5, 10)


@dataclasses.dataclass
class QualitySums:
    """Running sums over predicted positions."""

    n: int = 0
    base_nats: float = 0.0
    pruned_nats: float = 0.0
    kl_nats: float = 0.0
    overlap: dict[int, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(_TOPS, 0.0))

    def add(self, base: np.ndarray, pruned: np.ndarray, targets: np.ndarray) -> None:
        """Add positions: logits [positions, vocabulary] of both graphs, and the true next tokens [positions]."""
        for start in range(0, len(targets), _POSITIONS_AT_ONCE):
            part = slice(start, start + _POSITIONS_AT_ONCE)
            log_p, log_q = log_softmax(base[part]), log_softmax(pruned[part])
            rows = np.arange(len(targets[part]))
            self.n += len(rows)
            self.base_nats -= float(log_p[rows, targets[part]].sum())
            self.pruned_nats -= float(log_q[rows, targets[part]].sum())
            self.kl_nats += float((np.exp(log_p) * (log_p - log_q)).sum())
            for k in _TOPS:
                self.overlap[k] += top_k_overlap(base[part], pruned[part], k)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities [positions, vocabulary] in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def top_k_overlap(base: np.ndarray, pruned: np.ndarray, k: int) -> float:
    """Sum over positions of |top k of base and of pruned in common| / k."""
    k = min(k, base.shape[-1])
    first = np.argpartition(-base, k - 1, axis=-1)[:, :k]
    second = np.argpartition(-pruned, k - 1, axis=-1)[:, :k]
    common = (first[:, :, None] == second[:, None, :]).any(axis=-1)
    return float(common.sum() / k)


def decoder_quality(
    base: Path, pruned: Path, inputs: QualityInputs, spec: ModelSpec | None, *, progress: Progress
) -> Quality:
    """Judge a decoder on a text, by the tokenizer beside the graph or the checkpoint's.

    Raises:
        InputError: the text is too short, or it was asked for and no tokenizer is there.
        MissingPartError, RefusedError: as :func:`measure_quality`.
    """
    text = load_text(inputs.text)
    tokens = tokenize(text, base.parent, spec, limit=inputs.max_text_tokens)
    if tokens is None:
        if inputs.text is not None:
            raise InputError(f"{base.parent}: holds no tokenizer to read --text with; copy the model's tokenizer there")
        text, tokens = random_tokens(_vocabulary(base), inputs.max_text_tokens)
        progress.say("no tokenizer was found: quality is measured on random tokens, where perplexity means little")
    longest = configs_of(base.parent, spec).table_of_positions or WINDOW_TOKENS
    return measure_quality(base, pruned, tokens, text, window=min(longest, WINDOW_TOKENS), progress=progress)


def _vocabulary(graph: Path) -> int:
    import onnx

    logits = onnx.load(str(graph), load_external_data=False).graph.output[0]
    return int(logits.type.tensor_type.shape.dim[-1].dim_value)


def measure_quality(
    base: Path,
    pruned: Path,
    tokens: np.ndarray,
    text: Text,
    *,
    window: int = WINDOW_TOKENS,
    progress: Progress | None = None,
) -> Quality:
    """Perplexity, KL(base || pruned), top-k and greedy agreement on ``tokens`` [n] of ``text``.

    Windows of 256 tokens, or fewer where a model takes no more; loss is the mean negative log likelihood in nats,
    perplexity its exponential. Top-k agreement is the mean share of the k likeliest tokens that both have in
    common. Greedy agreement is the share of equal tokens over 32 greedily continued ones behind each of four
    passages of the text, every graph continuing its own.

    Raises:
        MissingPartError: onnxruntime or polygraphy is not installed.
        RefusedError: a graph produces no finite numbers.
    """
    progress = progress or Quiet()
    with needs("ort", "comparing"):
        from gatenorm_export.comparing.runners import OnnxDecoder
    windows = [tokens[start : start + window] for start in range(0, len(tokens), window)]
    windows = [part for part in windows if len(part) > 1]
    sums = QualitySums()
    equal, continued = 0, 0
    with silent_polygraphy(), OnnxDecoder(base, "base") as first, OnnxDecoder(pruned, "pruned") as second:
        with progress.task("measure quality", total=len(windows)) as bar:
            for part in windows:
                logits = [_prefill(runner, part[None])[0] for runner in (first, second)]
                sums.add(logits[0][:-1], logits[1][:-1], part[1:])
                bar.advance()
        starts = np.linspace(0, max(len(tokens) - GREEDY_PROMPT_TOKENS, 0), GREEDY_PROMPTS).astype(int)
        with progress.task("compare greedy continuations", total=len(starts)) as bar:
            for start in starts:
                prompt = tokens[start : start + GREEDY_PROMPT_TOKENS]
                ours, theirs = (greedy(runner, prompt, GREEDY_TOKENS) for runner in (first, second))
                equal += int((ours == theirs).sum())
                continued += len(ours)
                bar.advance()
    if not np.isfinite([sums.base_nats, sums.pruned_nats, sums.kl_nats]).all():
        raise RefusedError(f"{base} or {pruned}: the logits are not finite on {text.name}; the graph cannot be judged")
    base_loss, pruned_loss = sums.base_nats / sums.n, sums.pruned_nats / sums.n
    return Quality(
        text=text.name,
        text_sha256=text.sha256,
        n_tokens=sums.n,
        base_loss_nats=base_loss,
        pruned_loss_nats=pruned_loss,
        base_ppl=float(np.exp(base_loss)),
        pruned_ppl=float(np.exp(pruned_loss)),
        ppl_ratio=float(np.exp(pruned_loss - base_loss)),
        # Rounding can leave a sum of exact zeros a hair below zero.
        kl_nats=max(sums.kl_nats / sums.n, 0.0),
        top1_agreement=sums.overlap[1] / sums.n,
        top5_agreement=sums.overlap[5] / sums.n,
        top10_agreement=sums.overlap[10] / sums.n,
        greedy_agreement=equal / continued,
        greedy_tokens=continued,
    )


def greedy(runner: Any, prompt: np.ndarray, n_tokens: int) -> np.ndarray:
    """Continue ``prompt`` [n] greedily by ``n_tokens`` tokens with the runner's cache."""
    from gatenorm_export.comparing.feeds import step_feed

    mask = np.ones((1, len(prompt)), np.int64)
    logits = _prefill(runner, prompt[None])
    continued: list[int] = []
    while True:
        continued.append(int(logits[0, -1].argmax()))
        if len(continued) == n_tokens:
            return np.array(continued)
        mask = np.concatenate([mask, np.ones((1, 1), np.int64)], axis=1)
        feed = step_feed(np.array([[continued[-1]]], np.int64), mask)
        logits = runner.infer(feed)["logits"]


def _prefill(runner: Any, tokens: np.ndarray) -> np.ndarray:
    from gatenorm_export.comparing.feeds import step_feed

    tokens = tokens.astype(np.int64)
    return np.asarray(runner.infer(step_feed(tokens, np.ones_like(tokens)))["logits"])
