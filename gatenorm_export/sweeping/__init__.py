"""The paper's third experiment by one command: what each ranking costs and gains at each number of layers."""

from __future__ import annotations

from gatenorm_export.planning import RANKINGS
from gatenorm_export.sweeping.chart import sweep_svg
from gatenorm_export.sweeping.front import front_sentence, pareto_front
from gatenorm_export.sweeping.prepare import Subject, prepare
from gatenorm_export.sweeping.ranking import Rank, parse_rank
from gatenorm_export.sweeping.request import SWEEP_NAME, SweepRequest
from gatenorm_export.sweeping.sweep import run_sweep

__all__ = [
    "RANKINGS",
    "SWEEP_NAME",
    "Rank",
    "Subject",
    "SweepRequest",
    "front_sentence",
    "pareto_front",
    "parse_rank",
    "prepare",
    "run_sweep",
    "sweep_svg",
]
