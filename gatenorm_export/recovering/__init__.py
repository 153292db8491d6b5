"""Recovery: fine-tune the pruned model with LoRA on a text, merge, export and prune again."""

from gatenorm_export.recovering.recover import recover_model
from gatenorm_export.recovering.request import RecoverRequest

__all__ = ["RecoverRequest", "recover_model"]
