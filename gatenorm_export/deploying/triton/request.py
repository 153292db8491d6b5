"""What a model repository is asked to be."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

from gatenorm_export.errors import UsageError

Kind = Literal["cpu", "gpu"]
RuntimeName = Literal["onnxruntime", "tensorrt"]
ModelKind = Literal["generate", "onnxruntime", "tensorrt", "ensemble"]
EXIT_SECONDS = 30
"""How long Triton waits for its models when it ends, where ``--exit-timeout-secs`` does not say."""

_INT32, _INT64 = 2**31 - 1, 2**63 - 1
MODEL_KINDS: tuple[ModelKind, ...] = ("generate", "onnxruntime", "tensorrt", "ensemble")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where models run: on CPU or GPU (engines always on a GPU), on which GPUs (all, if none is named), how many
    instances on each, and how many threads an instance's ONNX Runtime takes (0: it decides)."""

    kind: Kind = "cpu"
    gpus: tuple[int, ...] = ()
    instances: int = 1
    threads: int = 0


@dataclasses.dataclass(frozen=True)
class Load:
    """How much is taken on at once.

    ``max_batch`` requests are computed together, if so many are there within ``queue_delay_us``; ``max_running`` of
    these batches (or sequences) take turns on an instance; ``max_waiting`` more requests wait. ``max_context`` tokens
    of prompt and answer are taken (None: what the bundle says), and ``default_max_tokens`` are generated unless the
    client asks for a number, fewer where the context has no room for them. When the model is unloaded, what is under
    way may go on for ``drain_seconds``, which is to be less than the server waits (``EXIT_SECONDS`` unless told
    otherwise).
    """

    max_batch: int = 1
    queue_delay_us: int = 0
    max_running: int = 8
    max_waiting: int = 64
    max_context: int | None = None
    default_max_tokens: int = 64
    drain_seconds: int = 20


@dataclasses.dataclass(frozen=True)
class TritonRequest:
    """A repository in ``out`` from ``bundle``. ``name`` None: the bundle's; ``models`` empty: all that are possible.

    ``runtime`` is that of the Python model; None: ONNX Runtime where there is a graph.

    Raises:
        UsageError: a number is out of range, or the name is none that a model may have.
    """

    bundle: Path
    out: Path
    name: str | None = None
    models: tuple[ModelKind, ...] = ()
    runtime: RuntimeName | None = None
    placement: Placement = Placement()
    load: Load = Load()

    def __post_init__(self) -> None:
        # The most is what the fields of Triton's configuration hold.
        for what, value, least, most in (
            ("--instances", self.placement.instances, 1, _INT32),
            ("--threads", self.placement.threads, 0, _INT32),
            ("--max-batch", self.load.max_batch, 1, _INT32),
            ("--queue-delay", self.load.queue_delay_us, 0, _INT64),
            ("--max-running", self.load.max_running, 1, _INT32),
            ("--max-waiting", self.load.max_waiting, 1, _INT32),
            ("--max-context", 2 if self.load.max_context is None else self.load.max_context, 2, _INT64),
            ("--max-tokens", self.load.default_max_tokens, 1, _INT64),
            ("--drain", self.load.drain_seconds, 0, _INT32),
            *(("--gpus", gpu, 0, _INT32) for gpu in self.placement.gpus),
        ):
            if value < least:
                raise UsageError(f"{what} {value}: give {least} or more")
            if value > most:
                raise UsageError(f"{what} {value}: give {most} at most")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise UsageError(f"--name {self.name!r}: a model's name is of letters, digits, '_', '-' and '.'")


def parse_models(text: str) -> tuple[ModelKind, ...]:
    """Kinds of models from a list such as "generate,onnxruntime"; empty: all.

    Raises:
        UsageError: there is no such kind.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in MODEL_KINDS]
    if unknown:
        raise UsageError(f"--models {unknown[0]}: there are {', '.join(MODEL_KINDS)}")
    return tuple(kind for kind in MODEL_KINDS if kind in words)


def model_name(text: str) -> str:
    """A name that Triton takes, from any."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "model"
