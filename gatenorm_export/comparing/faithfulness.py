"""Is the surgery right? The graph against the framework model with the same attention branches zeroed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gatenorm_export.comparing.failures import runtime_failures
from gatenorm_export.errors import needs
from gatenorm_export.framework import load_framework_model, zeroed_attention
from gatenorm_export.kinds import kind_of
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import Faithfulness, ModelSpec, StepError
from gatenorm_export.silence import silent_polygraphy

if TYPE_CHECKING:
    from gatenorm_export.repairs import LayerRepair

RELATIVE_TOLERANCE = 1e-4
"""Largest logit error as a share of the reference's logit range. fp32 over thirty layers stays an order of magnitude
below it; a branch left in, or a wrong position, is orders above."""


def check_faithfulness(
    graph: Path,
    spec: ModelSpec,
    dropped: tuple[int, ...],
    *,
    model: Any = None,
    repairs: Mapping[int, LayerRepair] | None = None,
    tower: str = "",
    cross: tuple[int, ...] = (),
    progress: Progress | None = None,
) -> Faithfulness:
    """Compare ``graph`` with the framework model of ``spec`` whose attention branches ``dropped`` are zeroed by hooks.

    With nothing dropped this validates an export. ``model`` saves loading it again; ``repairs`` stand in for the
    dropped attention in the framework model too. ``tower`` is the one that the graph holds, of a model with several;
    ``cross`` are removed cross-attention sublayers of a speech decoder.

    Raises:
        MissingPartError: onnxruntime or polygraphy is not installed.
        InputError: the graph or the checkpoint cannot be loaded.
        RefusedError: the graph is not of the model's kind, or a layer does not exist.
    """
    progress = progress or Quiet()
    kind = kind_of(spec, tower).kind
    # Before the model is loaded, which may take minutes.
    with needs("ort", "comparing"):
        import onnxruntime  # noqa: F401
        import polygraphy  # noqa: F401
    if model is None:
        with progress.task("load the framework model"):
            model, _ = load_framework_model(spec, tower)
    check = kind.function("faithfulness")
    options = {"repairs": repairs} if kind.calibrates else {"tower": tower, "cross": cross}
    with runtime_failures(str(graph)):
        result: Faithfulness = check(graph, spec, dropped, model, progress=progress, **options)
    return result


def check_decoder(
    graph: Path,
    spec: ModelSpec,
    dropped: tuple[int, ...],
    model: Any,
    *,
    repairs: Mapping[int, LayerRepair] | None = None,
    progress: Progress,
) -> Faithfulness:
    """Run a decoder's graph and ``model`` through the same script.

    That is a left-padded prefill of two prompts, eight decode steps with a real KV cache, a chunk of four tokens onto
    the cache, two more decode steps, teacher-forced with the reference's greedy tokens.

    Raises:
        InputError: the graph cannot be loaded.
        RefusedError: the graph is no decoder, or a layer does not exist.
    """
    from polygraphy.comparator import Comparator, CompareFunc

    from gatenorm_export.comparing.feeds import make_script
    from gatenorm_export.comparing.runners import FrameworkDecoder, OnnxDecoder

    reference = FrameworkDecoder(model)
    with progress.task("check faithfulness"), silent_polygraphy(), zeroed_attention(model, spec, dropped, repairs):
        logits: list[np.ndarray] = []

        def logits_of(feed: Any) -> np.ndarray:
            logits.append(reference.infer(feed)["logits"])
            return logits[-1]

        with reference:
            script = make_script(logits_of, model.config.vocab_size)
        shown = np.concatenate(
            [
                step[feed["attention_mask"][:, -step.shape[1] :] != 0]
                for step, feed in zip(logits, script.feeds, strict=True)
            ]
        )
        logit_range = float(np.ptp(shown))
        tolerance = RELATIVE_TOLERANCE * logit_range
        results = Comparator.run([reference, OnnxDecoder(graph, "graph")], data_loader=script.feeds)
        compared = Comparator.compare_accuracy(
            results, compare_func=CompareFunc.simple(rtol=0.0, atol=tolerance, check_error_stat="max")
        )
        outputs = [[step["logits"] for step in iterations] for iterations in results.values()]
        verdicts = [bool(step["logits"]) for step in next(iter(compared[0].values()))]
    over = f"prefill with left padding and {len(script.names) - 1} steps with cache"
    return summarise(
        script.names, outputs, verdicts, tolerance, logit_range, what_went("attention", dropped, repairs), over
    )


def summarise(
    names: tuple[str, ...],
    outputs: list[list[np.ndarray]],
    verdicts: list[bool],
    tolerance: float,
    logit_range: float,
    zeroed: str,
    over: str,
    *,
    what: str = "logit",
    with_tokens: bool = True,
) -> Faithfulness:
    """Put a check together: the reference's and the graph's result of every step, and whether each agreed.

    ``over`` says in words what was run; with ``with_tokens`` results are logits [batch, step, vocabulary], whose greedy
    tokens have to agree too.
    """
    steps = []
    tokens_equal = True
    for name, expected, got, agreed in zip(names, *outputs, verdicts, strict=True):
        error = float(np.max(np.abs(expected - got)))
        # A NaN compares false with everything, so finiteness is asked for by itself.
        passed = agreed and bool(np.isfinite(got).all()) and error <= tolerance
        steps.append(StepError(step=name, max_abs_error=error, tolerance=tolerance, passed=passed))
        if with_tokens:
            tokens_equal &= _same_tokens(expected[:, -1], got[:, -1], tolerance)
    worst = max(steps, key=lambda step: step.max_abs_error if np.isfinite(step.max_abs_error) else np.inf)
    passed = all(step.passed for step in steps) and tokens_equal
    reason = (
        f"{'passed' if passed else 'FAILED'}: largest {what} error {worst.max_abs_error:.1e} ({worst.step}), tolerance "
        f"{tolerance:.1e}, over {over}"
    )
    return Faithfulness(
        passed=passed,
        reason=reason,
        reference=f"framework model in fp32 with {zeroed}",
        steps=tuple(steps),
        max_abs_error=worst.max_abs_error,
        logit_range=logit_range,
        tolerance=tolerance,
        tokens_equal=tokens_equal if with_tokens else None,
    )


def what_went(attention: str, dropped: tuple[int, ...], repairs: Mapping[int, LayerRepair] | None = None) -> str:
    """What the reference does without, in words; ``attention`` says of which kind."""
    if not dropped:
        return "nothing zeroed"
    done = "replaced by its repair" if repairs else "zeroed"
    return f"{attention} of layers {', '.join(map(str, dropped))} {done}"


def _same_tokens(expected: np.ndarray, got: np.ndarray, tolerance: float) -> bool:
    """Whether greedy decoding takes the same token; two tokens closer than twice the tolerance are a tie."""
    rows = np.arange(len(expected))
    margin = expected.max(axis=-1) - expected[rows, got.argmax(axis=-1)]
    return bool((margin <= 2 * tolerance).all())
