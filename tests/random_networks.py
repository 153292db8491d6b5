"""Random residual networks: blocks in every form, decoys between them, and a reference with a gate on every branch."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
from network_tape import MICROSOFT, POSITIONS, VOCABULARY, WIDTH, Network, Tape
from random_attention import cache_inputs, past_length
from random_blocks import Stream, block


@dataclasses.dataclass(frozen=True)
class Built:
    """A graph, and what its generator knows about it."""

    model: ir.Model
    owner: dict[int, int]
    """For each layer that keeps keys and values: the layer whose cache tensors hold them."""

    def cache_of(self, layer: int) -> set[str]:
        """The names of the past tensors that belong to a layer."""
        inputs = [value.name or "" for value in self.model.graph.inputs]
        return {name for name in inputs if name.startswith(f"past_{layer}_")}


def build(network: Network, *, gated: bool = False) -> Built:
    """Write the network's graph."""
    tape = Tape(network, gated=gated)
    tokens = tape.input("tokens", ir.DataType.INT64, ["b", "s"])
    total = network.mask_symbol if network.cache else "s"
    tape.input("attention_mask", ir.DataType.INT64, ["b", total])
    tape.owner = {layer: layer for layer in range(len(network.layers))}
    caches = [cache_inputs(tape, layer) for layer in range(len(network.layers))]
    if "keys before values" in network.extras:
        caches.sort(key=len)
        names = sorted((item for cache in caches for item in cache.items()), key=lambda item: item[0].endswith("value"))
        caches = [dict(names)]
    for cache in caches:
        for name, shape in cache.items():
            tape.input(name, ir.DataType.FLOAT, shape)
    x = tape.op("Gather", tape.weight("embedding", VOCABULARY, WIDTH, spread=3.0), tokens)
    if "positions" in network.extras:
        past = past_length(tape, 0)
        last = tape.op("Add", past, tape.length(tokens, 1))
        table = tape.weight("positions", POSITIONS, WIDTH, spread=3.0)
        x = tape.op("Add", x, tape.op("Slice", table, past, last, tape.constant([0])))
    stream, start = Stream(x), x
    for layer in range(len(network.layers)):
        stream = block(tape, layer, stream)
        if "long skip" in network.extras and layer == len(network.layers) // 2:
            stream = Stream(tape.op("Add", stream.value, tape.op("Mul", start, tape.number(0.5))))
    tape.scope = "head"
    _finish(tape, stream)
    opsets = {"": 23 if any(spec.attention == "Attention" for spec in network.layers) else 18, MICROSOFT: 1}
    graph = ir.Graph(
        list(tape.inputs.values()),
        tape.outputs,
        nodes=_shuffled(tape.nodes, network.seed) if "shuffled" in network.extras else tape.nodes,
        initializers=list(tape.initializers.values()),
        opset_imports=opsets,
        name="network",
    )
    return Built(ir.Model(graph, ir_version=10), tape.owner)


def _shuffled(nodes: list[ir.Node], seed: int) -> list[ir.Node]:
    """Another topological order."""
    rng = np.random.default_rng(seed)
    waiting, done, order = list(nodes), set[ir.Node](), list[ir.Node]()
    while waiting:
        ready = [node for node in waiting if not needed(node) - done]
        node = ready[rng.integers(len(ready))]
        waiting.remove(node)
        done.add(node)
        order.append(node)
    return order


def needed(node: ir.Node) -> set[ir.Node]:
    """The nodes whose results a node reads, by its operands or inside its subgraphs."""
    inner = [each for attribute in node.attributes.values() for each in _inner_nodes(attribute)]
    producers = {value.producer() for each in (node, *inner) for value in each.inputs if value is not None}
    return {producer for producer in producers if producer is not None} - set(inner)


def _inner_nodes(attribute: ir.Attr) -> list[ir.Node]:
    return list(attribute.as_graph()) if attribute.type == ir.AttributeType.GRAPH else []


def _finish(tape: Tape, stream: Stream) -> None:
    """The logits, and heads whose softmax or attention is no sublayer."""
    extras = tape.network.extras
    x = stream.value if stream.normed is None else stream.normed
    if "auxiliary stream" in extras:
        tape.output(tape.op("Mul", x, tape.number(2.0)), "doubled", ["b", "s", WIDTH])
    if "pooling head" in extras:
        # Attention of one learned query over the tokens: a core that no stream gets back.
        query = tape.weight("pooling_query", 1, WIDTH)
        key, value = (tape.op("MatMul", x, tape.weight(f"pooling_{name}", WIDTH, WIDTH)) for name in ("key", "value"))
        scores = tape.op("MatMul", query, tape.op("Transpose", key, perm=[0, 2, 1]))
        pooled = tape.op("MatMul", tape.op("Softmax", scores, axis=-1), value)
        tape.output(pooled, "pooled", ["b", 1, WIDTH])
    logits = tape.op("MatMul", x, tape.weight("head", WIDTH, VOCABULARY))
    if "softmax output" in extras:
        tape.output(tape.op("Softmax", logits, axis=-1), "next", ["b", "s", VOCABULARY])
    tape.output(logits, "logits", ["b", "s", VOCABULARY])


def feed(model: ir.Model, network: Network, seed: int = 1, past: int = 3, step: int = 4) -> dict[str, np.ndarray]:
    """Inputs for the network's unpruned graph."""
    past = past if network.cache else 0
    grouped = any(spec.attention == "GroupQueryAttention" for spec in network.layers)
    # That kernel takes several tokens onto a past for a batch of one only, and no padding on the left.
    batch = 1 if grouped else 2
    rng = np.random.default_rng(seed)
    result: dict[str, np.ndarray] = {
        "tokens": rng.integers(0, VOCABULARY, size=(batch, step)),
        "attention_mask": np.ones((batch, past + step), np.int64),
        "flag": np.array(bool(seed % 2)),
    }
    if not grouped:
        result["attention_mask"][0, 0] = 0
    lengths = {"b": batch, "p": past, "s": step, "m": 5}
    for value in model.graph.inputs:
        name = value.name or ""
        if name == "memory" or name.startswith("past_"):
            shape = [size if isinstance(size, int) else lengths[str(size)] for size in value.shape or ()]
            result[name] = rng.normal(size=shape).astype(np.float32)
    names = {value.name for value in model.graph.inputs}
    return {name: array for name, array in result.items() if name in names}


def run(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
