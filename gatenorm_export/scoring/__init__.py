"""Scores of attention sublayers, from weights alone."""

from gatenorm_export.scoring.gate_norm import gate_norm
from gatenorm_export.scoring.model import ScoreRequest, score_model
from gatenorm_export.scoring.trend import depth_trend

__all__ = ["ScoreRequest", "depth_trend", "gate_norm", "score_model"]
