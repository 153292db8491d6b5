"""Put what a runtime takes in the place of operators that it does not: the pass, and which lowering serves which."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from graph_passes.dataflow import subgraphs
from graph_passes.element_types import set_element_types
from graph_passes.find_attention import find_attention
from graph_passes.gate_attention import branch_with_bias
from graph_passes.lowering.activations import lower_fast_gelu, lower_gelu, lower_quick_gelu
from graph_passes.lowering.attention import lower_attention
from graph_passes.lowering.group_query import lower_group_query
from graph_passes.lowering.lower_tape import CannotLower, LowerTape, Shared
from graph_passes.lowering.multi_head import lower_microsoft_attention, lower_multi_head
from graph_passes.lowering.norms import lower_embedding_norm, lower_norm, lower_skip_norm
from graph_passes.lowering.products import (
    can_be_int4,
    lower_fused_product,
    lower_packed_product,
    lower_packed_product_to_int4,
)
from graph_passes.lowering.rotary import lower_microsoft_rotary, lower_rotary
from graph_passes.operators import ATTENTION_OPERATORS, MICROSOFT, SKIP_NORMS, node_name, operator_name, operator_of

Lowering = Callable[[LowerTape], Sequence[ir.Value | None]]
Takes = Callable[[ir.Node], str | None]
"""None where a runtime takes a node as it is, otherwise why not."""

LOWERINGS: dict[tuple[str, str], Lowering] = {
    ("", "Attention"): lower_attention,
    ("", "RotaryEmbedding"): lower_rotary,
    ("", "LayerNormalization"): lower_norm,
    ("", "RMSNormalization"): lower_norm,
    ("", "SimplifiedLayerNormalization"): lower_norm,
    ("", "Gelu"): lower_gelu,
    (MICROSOFT, "SimplifiedLayerNormalization"): lower_norm,
    (MICROSOFT, "RMSNormalization"): lower_norm,
    (MICROSOFT, "SkipLayerNormalization"): lower_skip_norm,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): lower_skip_norm,
    (MICROSOFT, "EmbedLayerNormalization"): lower_embedding_norm,
    (MICROSOFT, "GroupQueryAttention"): lower_group_query,
    (MICROSOFT, "MultiHeadAttention"): lower_multi_head,
    (MICROSOFT, "Attention"): lower_microsoft_attention,
    (MICROSOFT, "RotaryEmbedding"): lower_microsoft_rotary,
    (MICROSOFT, "Gelu"): lower_gelu,
    (MICROSOFT, "BiasGelu"): lower_gelu,
    (MICROSOFT, "FastGelu"): lower_fast_gelu,
    (MICROSOFT, "QuickGelu"): lower_quick_gelu,
    (MICROSOFT, "FusedMatMul"): lower_fused_product,
    (MICROSOFT, "MatMulNBits"): lower_packed_product,
}
"""What each operator is lowered by. ONNX Runtime keeps its SimplifiedLayerNormalization in ONNX's own domain."""

# These say no axes that were not said before; with them gone, shape inference reaches the others.
_FIRST = frozenset(
    {
        *((MICROSOFT, name) for name in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")),
        *((MICROSOFT, name) for name in ("EmbedLayerNormalization", "Gelu", "BiasGelu", "FastGelu", "QuickGelu")),
        (MICROSOFT, "MatMulNBits"),
    }
)
# Unsqueeze, Squeeze, Split and ReduceSum take their axes as operands from here on.
_LOWEST_OPSET = 13


class LoweringRefused(Exception):
    """A graph holds an operator that cannot be lowered; the text names the node, the operator and the reason."""


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A graph that a runtime takes, and how many nodes of each operator became what."""

    model: ir.Model
    counts: Mapping[tuple[str, str], int]


class LowerOperators(ir.passes.FunctionalPass):
    """Lower every node that a runtime does not take; the model it was given stays as it is.

    Inputs, outputs, their names, types and order stay. Functions of the model are inlined first, where one of them
    holds such a node. ``int4`` keeps 4-bit weights in 4 bits.
    """

    def __init__(self, takes: Takes, *, int4: bool = False) -> None:
        super().__init__()
        self._takes = takes
        self._int4 = int4
        self.counts: Counter[tuple[str, str]] = Counter()

    def requires(self, model: ir.Model) -> None:
        """Every operator is taken or has a lowering.

        Raises:
            PreconditionError: one has not; the text names its node.
        """
        for node in _every_node(model):
            reason = None if _is_call(model, node) else self._takes(node)
            if reason is not None and operator_of(node) not in LOWERINGS:
                raise ir.passes.PreconditionError(f"{node_name(node)}: {reason}, and there is no lowering for it")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lower on a copy, the simplest first."""
        self.counts.clear()
        for value in model.graph.outputs:
            if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
                raise LoweringRefused(f"output {value.name} is computed by no node")
        if not any(self._takes(node) is not None for node in _every_node(model) if not _is_call(model, node)):
            return ir.passes.PassResult(_inlined(model), modified=False)
        copy = _inlined(model)
        for graph in copy.graphs():
            graph.sort()
        set_element_types(copy)
        self._part_biases(copy)
        self._round(copy, _FIRST)
        _declare_attention(copy)
        _infer_shapes(copy)
        set_element_types(copy)
        self._round(copy, LOWERINGS)
        _drop_dead(copy)
        used = {node.domain for node in _every_node(copy)}
        for domain in [domain for domain in copy.opset_imports if domain not in {*used, ""}]:
            del copy.opset_imports[domain]
        return ir.passes.PassResult(copy, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Nothing is left that the runtime does not take.

        Raises:
            PostconditionError: something is.
        """
        for node in _every_node(model):
            if not _is_call(model, node) and self._takes(node) is not None:
                raise ir.passes.PostconditionError(f"{node_name(node)}: {self._takes(node)}")

    def _part_biases(self, model: ir.Model) -> None:
        """Add the bias that a fused norm holds for attention to attention's own branch, with which it goes when that
        is removed later."""
        try:
            sites = find_attention(model).sites
        except ValueError as error:
            raise LoweringRefused(str(error)) from error
        for site in sites:
            residual = site.residual
            if residual.bias_index is None or operator_of(residual.merge) not in SKIP_NORMS:
                continue
            if self._takes(residual.merge) is not None:
                branch = branch_with_bias(site)
                branch.type = residual.branch.type
                residual.merge.replace_input_with(residual.branch_index, branch)
                residual.merge.replace_input_with(residual.bias_index, None)

    def _round(self, model: ir.Model, operators: Iterable[tuple[str, str]]) -> None:
        wanted, shared = frozenset(operators), Shared()
        opset = model.opset_imports.get("", 1)
        for graph in list(model.graphs()):
            for node in list(graph):
                if operator_of(node) in wanted and self._takes(node) is not None:
                    self._lower(node, opset, shared)

    def _lower(self, node: ir.Node, opset: int, shared: Shared) -> None:
        tape = LowerTape(node, opset, shared)
        lowering = LOWERINGS[operator_of(node)]
        into = "ONNX operators"
        if lowering is lower_packed_product:
            kept = self._int4 and can_be_int4(node, opset)
            into = "DequantizeLinear of int4 and MatMul" if kept else "MatMul with floating-point weights"
            lowering = lower_packed_product_to_int4 if kept else lower_packed_product
        try:
            if opset < _LOWEST_OPSET:
                raise CannotLower(f"lowering needs opset {_LOWEST_OPSET} or later, the graph has {opset}")
            results = lowering(tape)
        except CannotLower as error:
            raise LoweringRefused(
                f"{node_name(node)}: {self._takes(node)}, and it cannot be lowered: {error}"
            ) from error
        self.counts[operator_name(node), into] += 1
        _replace(tape, results)


def _inlined(model: ir.Model) -> ir.Model:
    """A copy whose nodes are all operators: what converts it next knows no functions."""
    copy = model.clone()
    if copy.functions:
        InlinePass()(copy)
    return copy


def lower_operators(model: ir.Model, takes: Takes, *, int4: bool = False) -> Lowered:
    """Lower what a runtime does not take; see :class:`LowerOperators`.

    Raises:
        LoweringRefused: a node can be neither taken nor lowered; the text names it, its operator and the reason.
    """
    lowering = LowerOperators(takes, int4=int4)
    try:
        result = lowering(model)
    except ir.passes.PreconditionError as error:
        raise LoweringRefused(str(error)) from error
    return Lowered(result.model, dict(lowering.counts))


def _every_node(model: ir.Model) -> Iterable[ir.Node]:
    for graph in model.graphs():
        yield from graph
    for function in model.functions.values():
        yield from ir.traversal.RecursiveGraphIterator(function)


def _is_call(model: ir.Model, node: ir.Node) -> bool:
    return node.op_identifier() in model.functions


def _declare_attention(model: ir.Model) -> None:
    """Shape inference knows no operator of com.microsoft; what follows one needs to know that it has three axes."""
    for node in _every_node(model):
        if operator_of(node) in ATTENTION_OPERATORS and node.domain == MICROSOFT and node.outputs[0].shape is None:
            node.outputs[0].shape = ir.Shape([None, None, None])


def _infer_shapes(model: ir.Model) -> None:
    """Infer shapes from the inputs on. What a file declares of ONNX's own nodes may be wrong and would stop it, so it
    counts only where nothing is inferred."""
    declared = {
        value: value.shape
        for node in _every_node(model)
        if not node.domain
        for value in node.outputs
        if value.shape is not None and not value.is_graph_output()
    }
    for value in declared:
        value.shape = None
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for value, shape in declared.items():
        value.shape = _joined(value.shape, shape)


def _joined(inferred: ir.Shape | None, declared: ir.Shape) -> ir.Shape:
    if inferred is None or inferred.rank() != declared.rank():
        return inferred or declared
    return ir.Shape([new if isinstance(new, int) else old for new, old in zip(inferred, declared, strict=True)])


def _replace(tape: LowerTape, results: Sequence[ir.Value | None]) -> None:
    """Give the readers of the node's results the new values, under the old names, and remove the node."""
    node, taken = tape.node, set[ir.Value]()
    for old, new in zip(node.outputs, [*results, *[None] * len(node.outputs)], strict=False):
        if new is None:
            continue
        producer = new.producer()
        if producer is None or producer.graph is not tape.graph or new in taken or new.is_graph_output():
            new = tape.op("Identity", new)
        taken.add(new)
        name = old.name
        new.shape = old.shape if old.shape is not None else new.shape
        new.type = old.type if old.type is not None else new.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}/fused" if name else None
        new.name = name or new.name
    tape.graph.remove(node, safe=True)


def _drop_dead(model: ir.Model) -> None:
    """Remove new nodes that nobody reads (results that the old operator offered), and weights that nobody needs now."""
    for graph in list(model.graphs()):
        for node in reversed(list(graph)):
            if next(subgraphs(node), None) is None and not any(
                value.uses() or value.is_graph_output() for value in node.outputs
            ):
                graph.remove(node, safe=True)
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
