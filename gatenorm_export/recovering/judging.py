"""What pruning cost on a text, and how much of it recovery gave back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from gatenorm_export.comparing.quality import WINDOW_TOKENS, QualitySums
from gatenorm_export.comparing.text import Text
from gatenorm_export.errors import RefusedError
from gatenorm_export.progress import Progress
from gatenorm_export.records import RecoveryQuality
from gatenorm_export.recovering.student import Student
from gatenorm_export.repairs import LayerRepair


def judge(
    student: Student,
    tokens: np.ndarray,
    text: Text,
    *,
    held_out: bool,
    repairs: Mapping[int, LayerRepair] | None = None,
    progress: Progress,
) -> RecoveryQuality:
    """Perplexity, KL and top-1 agreement of the pruned and the recovered model against the unpruned on ``tokens`` [n].

    In windows of 256 tokens, as `gatenorm compare` judges quality, and the same figures. ``held_out`` marks the
    end of the training text; ``repairs`` are judged beside the recovery, on the same windows.

    Raises:
        RefusedError: a model gives no finite numbers.
    """
    pruned, recovered, repaired = QualitySums(), QualitySums(), QualitySums()
    windows = [tokens[start : start + WINDOW_TOKENS] for start in range(0, len(tokens), WINDOW_TOKENS)]
    windows = [window for window in windows if len(window) > 1]
    with progress.task(f"judge on {text.name}", total=len(windows)) as bar:
        for window in windows:
            ids = torch.from_numpy(window)[None]
            with torch.no_grad():
                with student.unpruned():
                    base = _logits(student, ids)
                with student.pruned():
                    pruned.add(base, _logits(student, ids), window[1:])
                recovered.add(base, _logits(student, ids), window[1:])
                if repairs is not None:
                    with student.repaired(repairs):
                        repaired.add(base, _logits(student, ids), window[1:])
            bar.advance()
    n = pruned.n
    losses = [pruned.base_nats / n, pruned.pruned_nats / n, recovered.pruned_nats / n]
    losses += [repaired.pruned_nats / n] if repairs is not None else []
    if not np.isfinite(losses).all():
        raise RefusedError(f"{text.name}: the loss of a model is not finite there; it cannot be judged")
    lost = losses[1] - losses[0]
    return RecoveryQuality(
        text=text.name,
        text_sha256=text.sha256,
        held_out=held_out,
        n_tokens=n,
        base_ppl=float(np.exp(losses[0])),
        pruned_ppl=float(np.exp(losses[1])),
        recovered_ppl=float(np.exp(losses[2])),
        pruned_kl_nats=max(pruned.kl_nats / n, 0.0),
        recovered_kl_nats=max(recovered.kl_nats / n, 0.0),
        pruned_top1_agreement=pruned.overlap[1] / n,
        recovered_top1_agreement=recovered.overlap[1] / n,
        recovered_share=(losses[1] - losses[2]) / lost if lost > 0 else None,
        repaired_ppl=float(np.exp(losses[3])) if repairs is not None else None,
        repaired_kl_nats=max(repaired.kl_nats / n, 0.0) if repairs is not None else None,
        repaired_top1_agreement=repaired.overlap[1] / n if repairs is not None else None,
    )


def _logits(student: Student, ids: torch.Tensor) -> np.ndarray:
    return np.asarray(student.logits(ids)[0, :-1].numpy())
