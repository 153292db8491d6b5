"""Does Gate-Norm see what attention does? Forward passes on a text, beside the scores."""

from gatenorm_export.correlating.agreement import agreement, warning_of
from gatenorm_export.correlating.chart import correlation_svg
from gatenorm_export.correlating.correlate import CorrelationRequest, correlate_model
from gatenorm_export.correlating.measuring import Measured, measure_layers
from gatenorm_export.correlating.windows import Windows, cut_windows

__all__ = [
    "CorrelationRequest",
    "Measured",
    "Windows",
    "agreement",
    "correlate_model",
    "correlation_svg",
    "cut_windows",
    "measure_layers",
    "warning_of",
]
