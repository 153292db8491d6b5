"""What preparing changes in a graph in memory; with this the precision package runs graph_passes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.errors import InputError, NoEngineError, RefusedError
from gatenorm_export.precision.flavour_operators import INT4_WEIGHTS, takes
from gatenorm_export.precision.measure import Caches
from gatenorm_export.records import LoweredOperator, Precision

if TYPE_CHECKING:
    import onnx_ir as ir

    from graph_passes import AttentionSite, Conversion, NoMatch

_HALF: dict[str, str] = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}
_ACCURACY_OF_INT8 = 4
_NAMES: dict[str, Precision] = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}
_QUANTISED: dict[Precision, frozenset[str]] = {
    "fp8": frozenset({"FLOAT8E4M3FN"}),
    "int4": frozenset({"INT4"}),
}


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """What a graph computes in: the type of its activations, and whether some are rounded to few bits."""

    activations: Precision
    quantised: bool
    """Whether a QuantizeLinear rounds activations, in the graph and in its engine."""
    packed_rounds: bool
    """Whether ONNX Runtime rounds what MatMulNBits reads to 8 bits (accuracy_level 4), which no engine does."""


@dataclasses.dataclass(frozen=True)
class Changed:
    """A graph after lowering and conversion; ``conversion`` is None where its precision was the one asked for."""

    model: ir.Model
    lowered: tuple[LoweredOperator, ...]
    conversion: Conversion | None
    caches: Caches
    vocabulary: int
    weight_bytes: int
    rounds_activations: bool
    """Whether the source's products round what they read to 8 bits, which no lowered graph does."""


def change_graph(model: ir.Model, graph: Path, *, flavour: str, precision: Precision) -> Changed:
    """Lower what ``flavour`` does not take, then put the graph into ``precision``; ``graph`` is what errors name.

    Raises:
        NoEngineError: an operator is neither taken nor lowered.
        RefusedError: the graph cannot be in that precision.
        InputError: the graph cannot be analysed.
    """
    from graph_passes import LoweringRefused, lower_operators

    try:
        lowered = lower_operators(model, lambda node: takes(flavour, node), int4=flavour in INT4_WEIGHTS)
    except LoweringRefused as error:
        raise NoEngineError(
            f"{graph}: {error}; export the graph without it, build another flavour, or run the graph in ONNX Runtime"
        ) from error
    counts = tuple(
        LoweredOperator(operator=operator, into=into, count=count)
        for (operator, into), count in sorted(lowered.counts.items())
    )
    # The fused operators tell the size of a head where the cache's shape leaves it open.
    caches = caches_of(model, graph)
    vocabulary, weights = _vocabulary(lowered.model), _weight_bytes(lowered.model)
    conversion = _converted(lowered.model, graph, caches, precision)
    return Changed(lowered.model, counts, conversion, caches, vocabulary, weights, _packed_rounds(model))


def arithmetic_in(model: ir.Model, graph: Path) -> Arithmetic:
    """What a graph computes in, its weights' own bits aside.

    Raises:
        RefusedError: it is in a type that no engine computes in.
    """
    quantised = any(
        node.op_type == "QuantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value is None
        for inner in model.graphs()
        for node in inner
    )
    return Arithmetic(precision_of(model, graph), quantised, _packed_rounds(model))


def quantised_to(model: ir.Model) -> Precision | None:
    """fp8 or int4 where a DequantizeLinear reads numbers of that type."""
    return next((precision for precision in _QUANTISED if _reads(model, precision)), None)


def _packed_rounds(model: ir.Model) -> bool:
    return any(
        "accuracy_level" in node.attributes and node.attributes["accuracy_level"].as_int() == _ACCURACY_OF_INT8
        for inner in model.graphs()
        for node in inner
    )


def precision_of(model: ir.Model, graph: Path) -> Precision:
    """The floating-point type that most of a graph's weights are in, and its inputs and outputs where it has none.

    Raises:
        RefusedError: they are in a type that no engine computes in.
    """
    sizes: Counter[str] = Counter()
    for inner in model.graphs():
        for value in inner.initializers.values():
            tensor = value.const_value
            # Tables of angles and scales are small; quantised weights say nothing about what computes with them.
            if tensor is not None and tensor.dtype.is_floating_point() and tensor.dtype.bitwidth >= 16:
                sizes[tensor.dtype.name] += tensor.nbytes
    if not sizes:
        for value in (*model.graph.inputs, *model.graph.outputs):
            if value.dtype is not None and value.dtype.is_floating_point():
                sizes[value.dtype.name] += 1
    name = sizes.most_common(1)[0][0] if sizes else "FLOAT"
    if name not in _NAMES:
        raise RefusedError(f"{graph}: its weights are in {name}; export it in fp32, fp16 or bf16")
    return _NAMES[name]


def caches_of(model: ir.Model, graph: Path) -> Caches:
    """The cache inputs and outputs of every attention sublayer, matched or not.

    Raises:
        InputError: the graph has a cycle, or metadata that contradicts it.
    """
    from graph_passes import find_attention, heads_of

    try:
        found = find_attention(model)
    except ValueError as error:
        raise InputError(f"{graph}: {error}") from error
    steps: dict[str, str | None] = {}
    present: dict[str, None] = {}
    sizes: dict[str, int] = {}
    entries: list[AttentionSite | NoMatch] = [*found.sites, *found.unmatched]
    for entry in entries:
        names = [value.name or "" for value in entry.cache.present]
        present.update(dict.fromkeys(names))
        for index, value in enumerate(entry.cache.past):
            # The cache of what a decoder attends to does not grow: it has no output.
            steps.setdefault(value.name or "", names[index] if index < len(names) else None)
    for site in found.sites:
        size = heads_of(site).head_dim
        if size:
            sizes |= {value.name or "": size for value in site.cache.past}
    return Caches(steps, tuple(present), sizes)


def emulated(model: ir.Model, precision: Precision) -> None:
    """Make of a converted graph one that ONNX Runtime's CPU computes in float32, rounding after every node."""
    import onnx_ir as ir

    from graph_passes import EmulateType, set_element_types

    set_element_types(model)
    EmulateType(ir.DataType[_HALF[precision]])(model)


def _converted(model: ir.Model, graph: Path, caches: Caches, precision: Precision) -> Conversion | None:
    import onnx_ir as ir

    from graph_passes import ConvertPrecision

    if precision in _QUANTISED:
        _check_quantised(model, graph, precision)
        return None
    own = precision_of(model, graph)
    if own == precision:
        return None
    if own != "fp32":
        raise RefusedError(f"{graph}: it is in {own} already; build it as {own}, or export it in fp32 for {precision}")
    to = ir.DataType[_HALF[precision]]
    convert = ConvertPrecision(to, {*caches.past, *caches.present}, _Allows(model, to))
    try:
        convert(model)
    except (ir.passes.PassError, ir.passes.PreconditionError) as error:
        raise RefusedError(f"{graph}: cannot be put into {precision}: {error.__cause__ or error}") from error
    return convert.done


def _check_quantised(model: ir.Model, graph: Path, precision: Precision) -> None:
    """A graph is fp8 or int4 when a DequantizeLinear in it reads numbers of that type."""
    if _reads(model, precision):
        return
    wanted = "/".join(sorted(_QUANTISED[precision]))
    raise RefusedError(
        f"{graph}: no DequantizeLinear of it reads {wanted}, so it is not quantised to {precision}; quantise it first, "
        "or build it as fp16 or bf16"
    )


def _reads(model: ir.Model, precision: Precision) -> bool:
    for inner in model.graphs():
        for node in inner:
            types = {value.dtype.name for value in node.inputs if value is not None and value.dtype is not None}
            if node.op_type == "DequantizeLinear" and types & _QUANTISED[precision]:
                return True
    return False


class _Allows:
    """Whether ONNX's schema of a node's operator, in the graph's opset, takes a type."""

    def __init__(self, model: ir.Model, to: ir.DataType) -> None:
        self._opset = model.opset_imports.get("", 1)
        self._type = f"tensor({to.name.lower()})"
        self._known: dict[tuple[str, int], bool] = {}

    def __call__(self, node: ir.Node) -> bool:
        for index, value in enumerate(node.inputs):
            wide = value is not None and value.dtype is not None and value.dtype.name == "FLOAT"
            if wide and not self._takes(node.op_type, index):
                return False
        return True

    def _takes(self, op_type: str, index: int) -> bool:
        import onnx

        if (op_type, index) not in self._known:
            schema = onnx.defs.get_schema(op_type, self._opset, "")
            # The last input of a schema stands for all further ones.
            formal = schema.inputs[min(index, len(schema.inputs) - 1)]
            allowed = {
                kind
                for constraint in schema.type_constraints
                if constraint.type_param_str == formal.type_str
                for kind in constraint.allowed_type_strs
            } or {formal.type_str}
            self._known[op_type, index] = self._type in allowed
        return self._known[op_type, index]


def _vocabulary(model: ir.Model) -> int:
    """How many tokens there are: the rows of the table that token ids look up, 2 where there is none."""
    for value in model.graph.inputs:
        queue, seen = [value], {value}
        while queue and value.dtype is not None and value.dtype.is_integer():
            for node in queue.pop().consumers():
                table = node.inputs[0] if node.op_type == "Gather" else None
                if table is not None and table not in seen and table.const_value is not None:
                    return int(table.const_value.shape.numpy()[0])
                if node.op_type in {"Cast", "Reshape", "Identity"} and node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    queue.append(node.outputs[0])
    return 2


def _weight_bytes(model: ir.Model) -> int:
    held = [value.const_value for inner in model.graphs() for value in inner.initializers.values()]
    return sum(tensor.nbytes for tensor in held if tensor is not None and not tensor.dtype.is_string())
