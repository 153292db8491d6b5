"""Model repositories for Triton Inference Server."""

from gatenorm_export.deploying.triton.repository import RECORD_NAME, write_repository
from gatenorm_export.deploying.triton.request import MODEL_KINDS, Load, Placement, TritonRequest, parse_models

__all__ = ["MODEL_KINDS", "RECORD_NAME", "Load", "Placement", "TritonRequest", "parse_models", "write_repository"]
