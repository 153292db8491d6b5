"""Make a graph ready for one flavour of TensorRT: lower what it does not take, and put it into a precision."""

from gatenorm_export.precision.flavour_operators import OPERATORS, takes
from gatenorm_export.precision.graph_changes import Arithmetic
from gatenorm_export.precision.prepare import graph_arithmetic, graph_precision, prepare_graph

__all__ = ["OPERATORS", "Arithmetic", "graph_arithmetic", "graph_precision", "prepare_graph", "takes"]
