"""What a runtime takes in the place of operators that it does not; a file for each family of operators."""

from graph_passes.lowering.lower_operators import (
    LOWERINGS,
    Lowered,
    LoweringRefused,
    LowerOperators,
    lower_operators,
)

__all__ = ["LOWERINGS", "LowerOperators", "Lowered", "LoweringRefused", "lower_operators"]
