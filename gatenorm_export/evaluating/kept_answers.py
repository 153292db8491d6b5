"""Answers of a model to batches of inputs, kept as they come, so that an interrupted evaluation goes on there.

What is kept are answers and not metrics: lm-eval then sees whole lists of them, whatever was interrupted, and what it
makes of them, over tasks and groups, is what it would have made at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from gatenorm_export.kept_work import KeptWork
from gatenorm_export.progress import Progress, Quiet

Batch = TypeVar("Batch")
Answer = TypeVar("Answer")


class KeptAnswers:
    """The answers of one model, which ``decides`` (JSON values) tells from others in the same ``kept`` work.

    ``seconds`` is how long it took to compute those that were found.
    """

    def __init__(self, kept: KeptWork, *decides: Any, progress: Progress | None = None) -> None:
        self._kept, self._decides = kept, decides
        self._progress = progress or Quiet()
        self.seconds = 0.0

    def each(
        self,
        batches: Sequence[Batch],
        *,
        what: str,
        asked: Callable[[Batch], list[Any]],
        compute: Callable[[Batch], list[Answer]],
        read: Callable[[Any], Answer],
    ) -> Iterator[tuple[Batch, list[Answer]]]:
        """Every batch with its answers, one for each of what is ``asked``: those kept before, or else computed.

        ``asked`` gives all that decides the answers of a batch, in JSON types; ``read`` makes an answer of one that was
        kept, and raises TypeError or ValueError where it is none. ``what`` is said of what was found.
        """
        names, counts = [], []
        for batch in batches:
            entries = asked(batch)
            names.append(self._name(entries))
            counts.append(len(entries))
        found = [self._find(name, count, read) for name, count in zip(names, counts, strict=True)]
        known = sum(count for entry, count in zip(found, counts, strict=True) if entry is not None)
        if known:
            self._progress.say(f"{what}: {known:,} of {sum(counts):,} were computed before; going on")
        for batch, name, entry in zip(batches, names, found, strict=True):
            if entry is not None:
                self.seconds += entry[0]
                yield batch, entry[1]
                continue
            start = time.perf_counter()
            answers = compute(batch)
            self._kept.put(name, [time.perf_counter() - start, answers])
            yield batch, answers

    def _name(self, asked: list[Any]) -> str:
        return hashlib.sha256(json.dumps([*self._decides, asked]).encode()).hexdigest()

    def _find(self, name: str, count: int, read: Callable[[Any], Answer]) -> tuple[float, list[Answer]] | None:
        kept = self._kept.get(name)
        try:
            seconds, answers = kept  # type: ignore[misc]
            seconds, answers = float(seconds), [read(answer) for answer in answers]
        except (TypeError, ValueError):
            return None
        return (seconds, answers) if len(answers) == count and math.isfinite(seconds) else None
