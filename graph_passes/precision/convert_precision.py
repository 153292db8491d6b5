"""Put a float32 graph into half precision, as a strongly typed network wants it: every cast is a node."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

import onnx_ir as ir

from graph_passes.dataflow import subgraphs
from graph_passes.element_types import set_element_types
from graph_passes.operators import PRODUCTS, node_name, operator_of
from graph_passes.precision.wide_nodes import is_wide, wide_nodes

FLOAT = ir.DataType.FLOAT
LARGEST: Mapping[ir.DataType, float] = {
    ir.DataType.FLOAT: 3.4028234663852886e38,
    ir.DataType.FLOAT16: 65504.0,
    ir.DataType.BFLOAT16: 3.3895313892515355e38,
}
"""The largest number of each type."""

Allows = Callable[[ir.Node], bool]
"""Whether an operator, in the graph's opset, takes the new type."""

# Tables and weights; what is smaller are scales, epsilons, shifts of one axis.
_WEIGHT_NUMBERS = 1024
# A tensor that is needed in both types: below this size it stays in float32 and is cast for its other readers.
_KEPT_NUMBERS = 4096


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was converted: initializers that must be stored in the new type, and what stays in float32.

    ``stored`` still hold their float32 tensors: whoever writes the graph rounds them, one at a time. Numbers beyond the
    type's range become its largest.
    """

    to: ir.DataType
    stored: tuple[ir.Value, ...]
    caches: tuple[str, ...]
    wide: Mapping[str, int]
    n_casts: int


class ConvertPrecision(ir.passes.InPlacePass):
    """Compute in ``to`` what carries the network's data, and in float32 what :func:`wide_nodes` names.

    Of the signature, the tensors named in ``caches`` change their type; other inputs and outputs stay as they are. What
    is computed from integers alone (positions, masks) stays in float32.
    """

    def __init__(self, to: ir.DataType, caches: Collection[str], allows: Allows) -> None:
        super().__init__()
        self._to = to
        self._caches = frozenset(caches)
        self._allows = allows
        self.done: Conversion | None = None

    def requires(self, model: ir.Model) -> None:
        """The graph has no branches, whose results would need one type for all of them.

        Raises:
            PreconditionError: it has; the text names the node.
        """
        for node in model.graph:
            if next(subgraphs(node), None) is not None:
                raise ir.passes.PreconditionError(f"{node_name(node)}: a graph with branches keeps its precision")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert; nodes must be in topological order."""
        model.graph.sort()
        set_element_types(model)
        work = _Work(model, self._to, self._caches, self._allows)
        self.done = work.convert()
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Every node reads floats of one type only.

        Raises:
            PostconditionError: one reads both.
        """
        stored = {value.name for value in self.done.stored} if self.done is not None else set()
        for node in model.graph:
            types = {
                self._to if value.name in stored else value.dtype
                for value in node.inputs
                if value is not None and value.dtype is not None and value.dtype.is_floating_point()
            }
            if len(types) > 1 and node.op_type not in {"CastLike", "QuantizeLinear", "DequantizeLinear"}:
                raise ir.passes.PostconditionError(
                    f"{node_name(node)} reads {', '.join(sorted(t.name for t in types if t))}"
                )


class _Work:
    def __init__(self, model: ir.Model, to: ir.DataType, caches: frozenset[str], allows: Allows) -> None:
        self.model, self.graph, self.to, self.caches, self.allows = model, model.graph, to, caches, allows
        kept = frozenset(value.name or "" for value in model.graph.outputs) - caches
        self.wide = wide_nodes(model, kept)
        self.carried: set[ir.Value] = set()
        """Float values that carry data: from weights, caches or other inputs, not from integers alone."""
        self.narrow: set[ir.Value] = set()
        self.low_nodes: list[ir.Node] = []
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self) -> Conversion:
        read = (value for node in self.graph for value in (*node.inputs, *node.outputs))
        floats = {value for value in read if value is not None and is_wide(value)}
        nodes = list(self.graph)
        for value in self.graph.inputs:
            if is_wide(value) and not value.is_initializer():
                self.carried.add(value)
                if value.name in self.caches:
                    self.narrow.add(value)
        for node in nodes:
            self._decide(node)
        low = set(self.low_nodes)
        stored = self._stored(floats, low)
        for value in self.narrow:
            value.dtype = self.to
        for node in nodes:
            self._connect(node, floats, self.to if node in low else FLOAT)
        self._outputs(floats)
        names: dict[str, int] = {}
        for node in nodes:
            if node not in low and any(value in self.carried for value in node.outputs):
                names[node.op_type] = names.get(node.op_type, 0) + 1
        caches = tuple(v.name or "" for v in (*self.graph.inputs, *self.graph.outputs) if v.name in self.caches)
        return Conversion(self.to, tuple(stored), caches, dict(sorted(names.items())), len(self.casts))

    def _decide(self, node: ir.Node) -> None:
        operands = [value for value in node.inputs if value is not None and is_wide(value)]
        carries = any(value in self.carried for value in operands) or self._reads_weight(node, operands)
        if not carries:
            return
        results = [value for value in node.outputs if is_wide(value)]
        self.carried.update(results)
        if node.op_type == "CastLike":
            like = node.inputs[1]
            if like in self.narrow:
                self.narrow.update(results)
            return
        if node in self.wide or not self.allows(node):
            return
        self.low_nodes.append(node)
        self.narrow.update(results)
        for name in ("to", "output_dtype"):
            attribute = node.attributes.get(name)
            if results and attribute is not None and attribute.as_int() == FLOAT:
                node.attributes[name] = ir.AttrInt64(name, int(self.to))

    def _reads_weight(self, node: ir.Node, operands: list[ir.Value]) -> bool:
        """Whether a node reads a tensor of weights; only nodes that are not wide begin a stream of data with one."""
        if node in self.wide and not any(value in self.carried for value in operands):
            return False
        products = operator_of(node) in PRODUCTS or node.op_type in {"Gather", "Conv", "ConvTranspose", "GatherND"}
        for value in operands:
            tensor = value.const_value
            if tensor is not None and (tensor.size >= _WEIGHT_NUMBERS or (products and len(tensor.shape) > 1)):
                return True
        return node.op_type == "DequantizeLinear" and bool(operands)

    def _stored(self, floats: set[ir.Value], low: set[ir.Node]) -> list[ir.Value]:
        """Initializers that are stored in the new type: all whose readers want it, and large ones where some do."""
        stored = []
        for value in self.graph.initializers.values():
            if value not in floats or value.const_value is None or value.is_graph_output():
                continue
            wanted = [node in low for node in value.consumers()]
            if wanted and (all(wanted) or (any(wanted) and value.const_value.size > _KEPT_NUMBERS)):
                stored.append(value)
                self.narrow.add(value)
        return stored

    def _connect(self, node: ir.Node, floats: set[ir.Value], wanted: ir.DataType) -> None:
        if node.op_type == "CastLike" or (node.op_type == "Cast" and wanted == FLOAT):
            return
        for index, value in enumerate(node.inputs):
            if value is not None and value in floats and value.dtype != wanted:
                node.replace_input_with(index, self._cast(value, wanted, node))

    def _cast(self, value: ir.Value, to: ir.DataType, before: ir.Node) -> ir.Value:
        """The value in another type, in front of its first reader; later readers share it."""
        if (value, to) not in self.casts:
            name = f"{value.name}/as_{to.name.lower()}"
            producer = value.producer()
            if producer is not None and producer.op_type == "Constant" and to == self.to:
                node = ir.node("Constant", [], {"value": rounded(_constant(producer), to)}, name=name)
            else:
                node = ir.node("Cast", [value], {"to": int(to)}, name=name)
            node.outputs[0].name, node.outputs[0].dtype = f"{name}_output", to
            node.outputs[0].shape = value.shape
            self.graph.insert_before(before, node)
            self.casts[value, to] = node.outputs[0]
        return self.casts[value, to]

    def _outputs(self, floats: set[ir.Value]) -> None:
        """Cast what leaves the graph: caches to the new type, everything else to float32."""
        for index, value in enumerate(self.graph.outputs):
            if value not in floats:
                continue
            wanted = self.to if value.name in self.caches else FLOAT
            if value.dtype == wanted:
                continue
            name = value.name
            node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"{name}/as_{wanted.name.lower()}_output")
            result = node.outputs[0]
            result.dtype, result.shape = wanted, value.shape
            value.name, result.name = f"{name}/inside", name
            self.graph.append(node)
            self.graph.outputs[index] = result
            self.casts[value, wanted] = result


def rounded(tensor: ir.TensorProtocol, to: ir.DataType) -> ir.TensorProtocol:
    """A float32 tensor in another type. What is finite stays finite: a mask of float32's lowest number must not become
    -inf, a row of which makes Softmax return NaN."""
    array = tensor.numpy()
    flat = array.reshape(-1)
    clipped = flat.clip(-LARGEST[to], LARGEST[to])
    endless = abs(flat) > LARGEST[FLOAT]
    clipped[endless] = flat[endless]
    return ir.tensor(clipped.reshape(array.shape).astype(to.numpy()), dtype=to, name=tensor.name)


def _constant(node: ir.Node) -> ir.TensorProtocol:
    if "value" in node.attributes:
        return node.attributes["value"].as_tensor()
    if "value_float" in node.attributes:
        return ir.tensor(node.attributes["value_float"].as_float(), dtype=FLOAT)
    return ir.tensor(list(node.attributes["value_floats"].as_floats()), dtype=FLOAT)
