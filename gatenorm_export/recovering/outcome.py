"""What training did, and what is left of it once the checkpoint is written."""

from __future__ import annotations

import dataclasses

from gatenorm_export.records import RecoveryPoint, RecoveryQuality


@dataclasses.dataclass(frozen=True)
class Training:
    """What training did. Losses are in nats per token; ``best_step`` 0 is the pruned model itself.

    ``seconds`` is all of it, ``earlier_seconds`` what of it an interrupted call had spent.
    """

    steps: int
    seconds: float
    best_step: int
    points: tuple[RecoveryPoint, ...]
    earlier_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is left of training once the checkpoint is written and the model is gone.

    ``seconds`` is how long it took, from loading the model to writing the checkpoint, over all calls.
    """

    training: Training
    n_train_windows: int
    n_held_out_tokens: int
    qualities: tuple[RecoveryQuality, ...]
    targets: tuple[str, ...]
    alpha: int
    n_trainable: int
    n_parameters: int
    seconds: float
