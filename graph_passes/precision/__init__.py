"""Another number format for a graph: really, or as a runtime computes it that has no arithmetic for it."""

from graph_passes.precision.convert_precision import Conversion, ConvertPrecision
from graph_passes.precision.emulate_type import EmulateType

__all__ = ["Conversion", "ConvertPrecision", "EmulateType"]
