"""Zero-shot tasks through EleutherAI's lm-eval, on ONNX graphs and on TensorRT engines."""

from gatenorm_export.evaluating.evaluate import EvaluationRequest, evaluate_models
from gatenorm_export.evaluating.models import EvaluatedModel, find_model

__all__ = ["EvaluatedModel", "EvaluationRequest", "evaluate_models", "find_model"]
