"""Proof of a pruning: faithfulness, quality, latency, limits."""

from gatenorm_export.comparing.faithfulness import check_faithfulness
from gatenorm_export.comparing.latency import measure_latency
from gatenorm_export.comparing.quality import measure_quality
from gatenorm_export.comparing.text import load_text
from gatenorm_export.comparing.thresholds import Limits, check_limits
from gatenorm_export.comparing.verdict import verdict

__all__ = [
    "Limits",
    "check_faithfulness",
    "check_limits",
    "load_text",
    "measure_latency",
    "measure_quality",
    "verdict",
]
