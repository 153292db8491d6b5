"""The training loop: AdamW on LoRA's weights, and a held-out part of the text that decides what is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from gatenorm_export.errors import RefusedError
from gatenorm_export.progress import Progress
from gatenorm_export.records import RecoveryLoss, RecoveryPoint
from gatenorm_export.recovering.outcome import Training
from gatenorm_export.recovering.request import RecoverRequest, Windows
from gatenorm_export.recovering.so_far import SoFar, TrainingFile
from gatenorm_export.recovering.student import Student

WARM_UP_STEPS = 10
EVALUATIONS = 8
# The first step allocates memory; the four after it are timed, and still lie in the warm-up, whose learning rate does
# not depend on the number of steps: that is what lets `--steps` repeat a run of so many minutes.
_TIMED_STEPS = (1, 5)
_CLIP_NORM = 1.0
_DIVERGED = "training diverged; give a smaller --learning-rate"


def train(
    student: Student,
    windows: Windows,
    request: RecoverRequest,
    *,
    file: TrainingFile | None = None,
    progress: Progress,
) -> Training:
    """Train, and leave the student in the state whose loss on the held-out text, of the kind it trains on, was lowest.

    The learning rate warms up over ten steps and falls to zero along a half cosine; gradients are clipped to norm 1.
    The same arguments give the same weights, on one machine with one number of threads, whether or not training was
    interrupted and went on from ``file``, where it is saved every so often and at its end.

    Raises:
        RefusedError: the loss is not finite.
        OutputError: ``file`` cannot be written.
    """
    start = time.perf_counter()
    optimizer = torch.optim.AdamW(student.parameters, lr=request.learning_rate, weight_decay=0.0)
    batches = _batches(windows.train, request.batch, request.seed)
    held_out = HeldOut(student, windows.held_out, request)
    before_judging = time.perf_counter()
    found = file.restore(student, optimizer, progress=progress) if file is not None else None
    if found is not None:
        so_far, best = found
        progress.say(f"{so_far.step} of {so_far.steps} steps were made before; going on")
        for _ in range(so_far.step):
            next(batches)
    else:
        so_far, best = SoFar(0, request.steps, 0, [_point(0, None, held_out, 0.0)]), student.state()
    seconds_to_judge = time.perf_counter() - before_judging
    earlier, timed = so_far.seconds, start
    with progress.task("train", total=so_far.steps) as bar:
        bar.advance(so_far.step)
        while so_far.steps is None or so_far.step < so_far.steps:
            if so_far.step == _TIMED_STEPS[0]:
                timed = time.perf_counter()
            if so_far.steps is None and so_far.step == _TIMED_STEPS[1]:
                seconds = (time.perf_counter() - timed) / (_TIMED_STEPS[1] - _TIMED_STEPS[0])
                so_far.steps = _steps_in(request.minutes * 60 - EVALUATIONS * seconds_to_judge, seconds)
                bar.total(so_far.steps)
                progress.say(
                    f"{request.minutes:g} minutes at {seconds:.2g} s a step: {so_far.steps} steps; "
                    f"--steps {so_far.steps} repeats it"
                )
            rate = request.learning_rate * _schedule(so_far.step, so_far.steps)
            so_far.since.append(_step(student, optimizer, next(batches), rate, request.loss))
            so_far.step += 1
            bar.advance()
            if so_far.steps is not None and _judged(so_far.step, so_far.steps):
                if _look(so_far, held_out, rate):
                    best = student.state()
                progress.say(_line(so_far.points[-1], so_far.steps, so_far.best_step))
            so_far.seconds = earlier + time.perf_counter() - start
            # Not before the number of steps is known: a run of minutes may be no other one for being interrupted.
            if file is not None and so_far.steps is not None and (file.due or so_far.step == so_far.steps):
                file.save(student, optimizer, best, so_far)
    student.restore(best)
    return Training(so_far.step, so_far.seconds, so_far.best_step, tuple(so_far.points), earlier)


def _look(so_far: SoFar, held_out: HeldOut, rate: float) -> bool:
    """Look at the held-out part; whether its loss is the lowest yet."""
    lowest = so_far.best_loss
    so_far.points.append(_point(so_far.step, sum(so_far.since) / len(so_far.since), held_out, rate))
    so_far.since = []
    if so_far.points[-1].held_out_loss_nats < lowest:
        so_far.best_step = so_far.step
        return True
    return False


class HeldOut:
    """The held-out part of the text, and what the unpruned model says there, which is computed once."""

    def __init__(self, student: Student, tokens: np.ndarray, request: RecoverRequest) -> None:
        self._student = student
        starts = range(0, len(tokens), request.window)
        self._windows = [torch.from_numpy(tokens[start : start + request.window])[None] for start in starts]
        self._teacher: list[torch.Tensor] = []
        if request.loss == "distill":
            with torch.no_grad(), student.unpruned():
                self._teacher = [student.logits(window) for window in self._windows]

    def losses(self) -> tuple[float, float]:
        """What training minimises, and next-token loss; both the mean over windows in nats per token."""
        minimised = text = 0.0
        with torch.no_grad():
            for index, window in enumerate(self._windows):
                logits = self._student.logits(window)
                next_token = float(_text_loss(logits, window))
                text += next_token
                minimised += float(_distillation_loss(logits, self._teacher[index])) if self._teacher else next_token
        return minimised / len(self._windows), text / len(self._windows)


def _steps_in(seconds: float, seconds_a_step: float) -> int:
    """How many steps fit; those that were timed have been made already."""
    return max(_TIMED_STEPS[1] + 1, math.floor(seconds / seconds_a_step))


def _judged(step: int, steps: int) -> bool:
    """Whether to look at the held-out part after ``step`` steps: at most eight times, evenly, and at the end.

    Not while the number of steps may still be unknown.
    """
    due = step * EVALUATIONS // steps > (step - 1) * EVALUATIONS // steps
    return (due and step > _TIMED_STEPS[1]) or step == steps


def _schedule(step: int, steps: int | None) -> float:
    """The share of the learning rate in a step, counted from 0; ``steps`` None is a number that is not known yet."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    assert steps is not None
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - WARM_UP_STEPS) / max(steps - WARM_UP_STEPS, 1)))


def _batches(windows: np.ndarray, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Windows in a seeded order, endlessly; each is seen once before any is seen again."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while True:
        while len(order) < batch:
            order.extend(rng.permutation(len(windows)).tolist())
        chosen, order = order[:batch], order[batch:]
        yield torch.from_numpy(windows[chosen])


def _step(
    student: Student, optimizer: torch.optim.AdamW, tokens: torch.Tensor, rate: float, loss_name: RecoveryLoss
) -> float:
    """One step on ``tokens`` [batch, window]; its loss in nats per token."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    if loss_name == "distill":
        with torch.no_grad(), student.unpruned():
            teacher = student.logits(tokens)
        loss = _distillation_loss(student.logits(tokens), teacher)
    else:
        loss = _text_loss(student.logits(tokens), tokens)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise RefusedError(f"the training loss became {value}: {_DIVERGED}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters, _CLIP_NORM)
    optimizer.step()
    return value


def _text_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood of the next tokens."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _distillation_loss(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean KL(teacher || student) over all positions."""
    student_log, teacher_log = (functional.log_softmax(part.flatten(0, 1), dim=-1) for part in (logits, teacher))
    return functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def _point(step: int, train_loss: float | None, held_out: HeldOut, rate: float) -> RecoveryPoint:
    loss, text_loss = held_out.losses()
    if not math.isfinite(loss + text_loss):
        raise RefusedError(f"the held-out loss is {loss} after step {step}: {_DIVERGED}")
    return RecoveryPoint(
        step=step,
        train_loss_nats=train_loss,
        held_out_loss_nats=loss,
        held_out_ppl=math.exp(min(text_loss, 700.0)),
        learning_rate=rate,
    )


def _line(point: RecoveryPoint, steps: int, best_step: int) -> str:
    kept = "best so far" if best_step == point.step else f"step {best_step} was better"
    return (
        f"step {point.step} of {steps}: training loss {point.train_loss_nats:.4f}, held-out loss "
        f"{point.held_out_loss_nats:.4f}, held-out perplexity {point.held_out_ppl:.2f} ({kept})"
    )
