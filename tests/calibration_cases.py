"""Random tokens as calibration text, and graphs repaired on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gatenorm_export.calibrating import StreamModel, fit_repairs
from gatenorm_export.calibrating.corpus import Corpus, split_windows
from gatenorm_export.pruning import prune_graph
from gatenorm_export.repairs import Repaired, parse_repair


def tokens(n: int, length: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 128, size=(n, length))


def corpus() -> Corpus:
    return split_windows(tokens(40), "random tokens")


def repair_graph(graph: Path, out: Path, kind: str, drop: tuple[int, ...]) -> Repaired:
    repair = parse_repair(kind)
    windows = tokens(10)
    fitted = fit_repairs(StreamModel(graph), windows, drop, repair)
    repaired = Repaired(repair, fitted, "random tokens", "00", int(windows.size))
    prune_graph(graph, out, layers=drop, repaired=repaired)
    return repaired
