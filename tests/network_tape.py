"""What a random network is made of, as frozen data, and the tape that its graph is written on."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

WIDTH, HEADS, SIZE, VOCABULARY, POSITIONS = 16, 4, 4, 11, 16
MICROSOFT = "com.microsoft"

Flags = frozenset[str]
Attribute = int | float | str | list[int] | ir.Graph


class _Brief:
    """Shows only what differs from the defaults, so that a failing example can be read and pasted."""

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default:
                text = f"flags({', '.join(map(repr, sorted(value)))})" if isinstance(value, frozenset) else repr(value)
                shown.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"


def flags(*names: str) -> Flags:
    return frozenset(names)


@dataclasses.dataclass(frozen=True, repr=False)
class Layer(_Brief):
    """One block. The defaults are the plainest pre-norm block, towards which hypothesis shrinks."""

    block: str = "pre-norm"
    attention: str = "single"
    exit: str = "matmul"
    mlp: str = "plain"
    scores: Flags = frozenset({"scale"})
    extras: Flags = frozenset()
    taps: Flags = frozenset()


@dataclasses.dataclass(frozen=True, repr=False)
class Network(_Brief):
    """A stack of blocks with everything that they share. ``length_source`` is (layer, "key" | "value" | "present")."""

    layers: tuple[Layer, ...] = (Layer(), Layer())
    cache: bool = False
    length_source: tuple[int, str] = (0, "key")
    length_form: str = "gather"
    lengths: str = "constant"
    mask_symbol: str = "p + s"
    extras: Flags = frozenset()
    seed: int = 0


class Tape:
    """Appends nodes to a graph. Weights are drawn from the network's seed and their own name, so that the same network
    built twice has the same weights.

    A gated tape has one more input, ``gates``, by which the exit of every attention branch is multiplied: the reference
    that needs no surgery.
    """

    def __init__(self, network: Network, *, gated: bool) -> None:
        self.network = network
        self.layers = network.layers
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.inputs: dict[str, ir.Value] = {}
        self.outputs: list[ir.Value] = []
        self.keys_values: dict[int, tuple[ir.Value, ir.Value]] = {}
        self.queries: dict[int, ir.Value] = {}
        self.owner: dict[int, int] = {}
        self.scope = "model"
        self._memo: dict[str, ir.Value] = {}
        self._gates = self.input("gates", ir.DataType.FLOAT, [len(network.layers)]) if gated else None

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        **attributes: Attribute,
    ) -> ir.Value:
        return self.multi(op_type, *inputs, domain=domain, wanted=(True,), **attributes)[0]

    def multi(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        wanted: tuple[bool, ...],
        **attributes: Attribute,
    ) -> tuple[ir.Value, ...]:
        """A node with several outputs; those that are not wanted are left out of the graph."""
        number = len(self.nodes)
        name = None if "unnamed" in self.network.extras else f"{self.scope}/{op_type}_{number}"
        outputs = [
            ir.Value(name=f"{name or f'v{number}'}_output_{slot}" if want else "") for slot, want in enumerate(wanted)
        ]
        while not wanted[len(outputs) - 1]:
            outputs.pop()
        self.nodes.append(ir.node(op_type, inputs, attributes, domain=domain, outputs=outputs, name=name))
        return tuple(outputs)

    def weight(self, name: str, *shape: int, dtype: type = np.float32, spread: float = 1.0) -> ir.Value:
        rng = np.random.default_rng([self.network.seed, zlib.crc32(name.encode())])
        return self.initializer(name, (rng.normal(size=shape) * spread / np.sqrt(shape[0])).astype(dtype))

    def constant(self, value: object, dtype: type = np.int64) -> ir.Value:
        """A constant that everybody who asks for the same shares."""
        array = np.asarray(value, dtype)
        return self.initializer(f"constant_{array.dtype}_{array.shape}_{array.tolist()}", array)

    def number(self, value: float, dtype: type = np.float32) -> ir.Value:
        return self.constant(value, dtype)

    def initializer(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self.initializers:
            tensor = ir.tensor(array, name=name)
            self.initializers[name] = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        found = self.initializers[name].const_value
        assert found is not None
        assert found.shape == array.shape, name
        return self.initializers[name]

    def once(self, key: str, make: Callable[[], ir.Value]) -> ir.Value:
        """What several layers share is computed where the first of them needs it, and carries that layer's scope."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        if name not in self.inputs:
            self.inputs[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        return self.inputs[name]

    def output(self, value: ir.Value, name: str, shape: list[int | str]) -> ir.Value:
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        self.outputs.append(value)
        return value

    def gate(self, layer: int, value: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """The exit of a branch, multiplied by its gate in the reference."""
        if self._gates is None:
            return value
        factor = self.op("Gather", self._gates, self.constant([layer]))
        return self.op("Mul", value, self.op("Cast", factor, to=int(dtype)))

    def add(self, layer: int, first: ir.Value, second: ir.Value) -> ir.Value:
        """A sum with its operands in the layer's order."""
        swapped = "swapped" in self.layers[layer].extras
        return self.op("Add", second, first) if swapped else self.op("Add", first, second)

    def norm(self, x: ir.Value, name: str, width: int = WIDTH) -> ir.Value:
        """A decomposed layer norm with a shift, so that a norm of zero is not zero."""
        centred = self.op("Sub", x, self.op("ReduceMean", x, self.constant([-1])))
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), self.constant([-1]))
        deviation = self.op("Sqrt", self.op("Add", variance, self.number(1e-5)))
        scaled = self.op("Mul", self.op("Div", centred, deviation), self.weight(f"gain_{name}", width, spread=4.0))
        return self.op("Add", scaled, self.weight(f"shift_{name}", width, spread=2.0))

    def length(self, value: ir.Value, axis: int) -> ir.Value:
        """One length of a tensor as a vector of one element, in one of the forms that exporters write."""
        if self.network.length_form == "attributes":
            return self.op("Shape", value, start=axis, end=axis + 1)
        shape = self.op("Shape", value)
        if self.network.length_form == "slice":
            return self.op("Slice", shape, self.constant([axis]), self.constant([axis + 1]))
        return self.op("Gather", shape, self.constant([axis]))

    def step(self, source: ir.Value) -> ir.Value:
        """The number of new tokens, read from the tokens or from the first layer's activations."""
        reader = source if self.network.lengths == "layer" else self.inputs["tokens"]
        return self.once("step", lambda: self.length(reader, 1))

    def leading(self, source: ir.Value) -> ir.Value:
        """The vector (batch, tokens), shared by all layers."""
        reader = source if self.network.lengths == "layer" else self.inputs["tokens"]
        return self.once("leading", lambda: self.op("Concat", self.length(reader, 0), self.length(reader, 1), axis=0))

    def unfold(self, flat: ir.Value, source: ir.Value) -> ir.Value:
        """[batch * tokens, width] back to [batch, tokens, width]."""
        return self.op("Reshape", flat, self.op("Concat", self.leading(source), self.constant([WIDTH]), axis=0))
