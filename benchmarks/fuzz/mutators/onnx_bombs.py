"""Graphs of few bytes that grow without end where somebody carries them out: doubled functions, huge constants."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_HUGE = 1 << 34
_DEEP = 60


def _doubling_functions(rng: random.Random, model: onnx.ModelProto) -> None:
    """A function that calls another twice, and so on: two to the power of ``_DEEP`` nodes once it is inlined."""
    from onnx import helper

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bomb", 1)]
    for level in range(_DEEP):
        inner = ("bomb", f"f{level + 1}") if level + 1 < _DEEP else ("", "Softmax")
        nodes = [helper.make_node(inner[1], [x], [y], domain=inner[0]) for x, y in (("x", "y"), ("y", "z"))]
        model.functions.append(helper.make_function("bomb", f"f{level}", ["x"], ["z"], nodes, opsets))
    model.opset_import.append(helper.make_opsetid("bomb", 1))
    _in_front(model, helper.make_node("f0", ["%"], ["bombed"], domain="bomb"))


def _calling_itself(rng: random.Random, model: onnx.ModelProto) -> None:
    from onnx import helper

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bomb", 1)]
    nodes = [
        helper.make_node("Softmax", ["x"], ["y"]),
        helper.make_node("itself", ["y"], ["z"], domain="bomb"),
    ]
    model.functions.append(helper.make_function("bomb", "itself", ["x"], ["z"], nodes, opsets))
    model.opset_import.append(helper.make_opsetid("bomb", 1))
    _in_front(model, helper.make_node("itself", ["%"], ["bombed"], domain="bomb"))


def _in_front(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Let the first projection read what ``node`` makes of what it read before."""
    reader = next((one for one in model.graph.node if one.op_type == "MatMul" and one.input), None)
    if reader is None:
        return
    for place, name in enumerate(node.input):
        node.input[place] = reader.input[0] if name == "%" else name
    reader.input[0] = node.output[0]
    nodes = list(model.graph.node)
    nodes.insert(nodes.index(reader), node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _huge_weight(operator: str) -> Callable[[random.Random, onnx.ModelProto], None]:
    """A weight that an operator makes huge out of nothing."""

    def change(rng: random.Random, model: onnx.ModelProto) -> None:
        import numpy as np
        from onnx import helper, numpy_helper

        readers = [one for one in model.graph.node if one.op_type == "MatMul" and len(one.input) == 2]
        if not readers:
            return
        reader = rng.choice(readers)
        side = rng.choice((_HUGE, 1 << 17, 1 << 62))
        lengths = numpy_helper.from_array(np.array([side, side // 2 if operator == "Tile" else side]), "bomb_shape")
        model.graph.initializer.append(lengths)
        source = ["bomb_shape"] if operator == "ConstantOfShape" else [reader.input[1], "bomb_shape"]
        nodes = [helper.make_node(operator, source, ["bombed"]), *model.graph.node]
        reader.input[1] = "bombed"
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return change


def _huge_shape(rng: random.Random, model: onnx.ModelProto) -> None:
    """Queries or keys reshaped or repeated to more than there is memory for."""
    import numpy as np
    from onnx import numpy_helper

    readers = [one for one in model.graph.node if one.op_type == "Reshape"]
    if not readers:
        return
    reader = rng.choice(readers)
    shape = rng.choice(([1, _HUGE, 2, 4], [_HUGE, 8], [1, 1, 2, 4], [1 << 40, 1 << 40], [-1, -1], [0] * 9))
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape), "bomb_shape"))
    reader.op_type = rng.choice(("Reshape", "Expand", "Tile"))
    reader.input[1] = "bomb_shape"


def _fixed_lengths(rng: random.Random, model: onnx.ModelProto) -> None:
    """Batches and sequences of a fixed, huge length."""
    for entry in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for dimension in entry.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_value = rng.choice((_HUGE, 1 << 20, 1 << 62, -5))


def _nested(rng: random.Random, model: onnx.ModelProto) -> None:
    """Ifs inside Ifs."""
    import onnx
    from onnx import helper

    graph = onnx.GraphProto()
    graph.name = "leaf"
    graph.node.append(helper.make_node("Softmax", [model.graph.input[0].name], ["leaf"]))
    graph.output.append(helper.make_tensor_value_info("leaf", 1, None))
    for level in range(rng.choice((3, 14, 28))):
        outer = onnx.GraphProto()
        outer.name = f"level{level}"
        branches = {"then_branch": graph, "else_branch": graph} if level < 3 else {"then_branch": graph}
        outer.node.append(helper.make_node("If", [model.graph.input[0].name], [f"out{level}"], **branches))
        outer.output.append(helper.make_tensor_value_info(f"out{level}", 1, None))
        graph = outer
    model.graph.node.insert(0, helper.make_node("If", [model.graph.input[0].name], ["nested"], then_branch=graph))


def _many_nodes(rng: random.Random, model: onnx.ModelProto) -> None:
    """A long chain: recursion over nodes ends in it."""
    from onnx import helper

    reader = next((one for one in model.graph.node if one.op_type == "Softmax" and one.input), None)
    if reader is None:
        return
    operator = rng.choice(("Identity", "Add", "Mul", "Cast", "Reshape", "Transpose"))
    name, chain = reader.input[0], []
    for step in range(3000):
        inputs = [name, name] if operator in {"Add", "Mul", "Reshape"} else [name]
        chain.append(helper.make_node(operator, inputs, [f"chain{step}"]))
        name = f"chain{step}"
    reader.input[0] = name
    nodes = list(model.graph.node)
    place = nodes.index(reader)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *chain, *nodes[place:]])


def _wide_blocks(rng: random.Random, model: onnx.ModelProto) -> None:
    """Packed weights whose attributes say that they are huge."""
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            for entry in node.attribute:
                if entry.name in {"K", "N", "block_size"} and rng.random() < 0.5:
                    entry.i = rng.choice((_HUGE, 1 << 62, 0, -1, 1 << 31))


BOMBS: dict[str, Callable[[random.Random, onnx.ModelProto], None]] = {
    "functions that double": _doubling_functions,
    "a function that calls itself": _calling_itself,
    "a huge Expand": _huge_weight("Expand"),
    "a huge Tile": _huge_weight("Tile"),
    "a huge ConstantOfShape": _huge_weight("ConstantOfShape"),
    "a huge reshape": _huge_shape,
    "huge fixed lengths": _fixed_lengths,
    "nested Ifs": _nested,
    "a long chain": _many_nodes,
    "huge packed weights": _wide_blocks,
}
"""Changes of a model, by name."""
