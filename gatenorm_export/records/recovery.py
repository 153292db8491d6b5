"""What a recovery did, and what it gave back."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.comparison import Faithfulness
from gatenorm_export.records.model import FileDigest, ModelSpec

RecoveryLoss = Literal["text", "distill"]
"""What training minimises: ``text`` next-token loss, ``distill`` KL(unpruned || recovered)."""


class RecoveryPoint(Part):
    """One look at the held-out part; losses are of the kind that training minimises, in nats per token.

    ``train_loss_nats`` is the mean since the last look, None before the first step.
    """

    step: int
    train_loss_nats: float | None
    held_out_loss_nats: float
    held_out_ppl: float
    learning_rate: float


class RecoveryQuality(Part):
    """Unpruned, pruned and recovered model on one text, in windows of 256 tokens; KL and agreement with the unpruned.

    ``held_out`` is the end of the training text, which also chose the checkpoint: it flatters. ``recovered_share`` is
    the share of the loss that pruning added and recovery took away again: below 0 it did harm, above 1 the text itself
    was learned; None where pruning added none. ``repaired`` is a closed-form repair of the same layers, where one was
    given to be judged against.
    """

    text: str
    text_sha256: str
    held_out: bool
    n_tokens: int
    base_ppl: float
    pruned_ppl: float
    recovered_ppl: float
    pruned_kl_nats: float
    recovered_kl_nats: float
    pruned_top1_agreement: float
    recovered_top1_agreement: float
    recovered_share: float | None
    repaired_ppl: float | None = None
    repaired_kl_nats: float | None = None
    repaired_top1_agreement: float | None = None


class RecoveryReport(Record):
    """One recovery: settings, what training did, what it gave back, and whether the new graph is faithful."""

    kind: Literal["recovery"] = "recovery"
    model: ModelSpec
    recovered_model: ModelSpec
    n_layers: int
    dropped: tuple[int, ...]
    plan_sha256: str | None
    text: str
    text_sha256: str
    loss: RecoveryLoss
    rank: int
    alpha: int
    targets: tuple[str, ...]
    n_trainable: int
    n_parameters: int
    learning_rate: float
    window_tokens: int
    batch_windows: int
    seed: int
    threads: int
    device: str
    n_train_windows: int
    n_held_out_tokens: int
    steps: int
    best_step: int
    n_tokens_seen: int
    epochs: float
    train_seconds: float
    total_seconds: float
    points: tuple[RecoveryPoint, ...]
    qualities: tuple[RecoveryQuality, ...]
    graph: FileDigest
    faithfulness: Faithfulness
    against: str | None = None
    """The repair that stands beside it, such as ``linear``."""
    verdict: str
    command: str
