"""ONNX: any field of any message of the graph lies, found by the format's own description of itself."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from benchmarks.fuzz.mutators.numbers import PATHS, integer, text
from benchmarks.fuzz.mutators.onnx_bombs import BOMBS
from benchmarks.fuzz.mutators.plain_bytes import mutate_bytes
from benchmarks.fuzz.mutators.wire import mutate_wire

if TYPE_CHECKING:
    import onnx

_WHOLE = {"int32": 32, "int64": 64, "uint32": 32, "uint64": 64, "sint32": 32, "sint64": 64}
_TYPES = {1: "double", 2: "float", 3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string", 11: "message"}
_TYPES |= {12: "bytes", 13: "uint32", 14: "enum", 17: "sint32", 18: "sint64"}


def mutate_onnx(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Change fields of the model, its outside data, its wires, its encoding or its bytes."""
    roll = rng.random()
    if roll < 0.12:
        return mutate_bytes(rng, data)
    if roll < 0.3:
        return mutate_wire(rng, data)
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:
        return mutate_bytes(rng, data)
    if not model.graph.node:
        return mutate_bytes(rng, data)
    changes = [_field] * 6 + [_outside, _outside, _names, _names, _metadata, _tensor, _tensor, _bomb, _attribute]
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        if not model.graph.node or not model.graph.initializer:
            break
        done.append(rng.choice(changes)(rng, model))
    return model.SerializeToString(), ", ".join(done)


def _messages(message: Any) -> list[Any]:
    found = [message]
    for field, value in message.ListFields():
        if _TYPES.get(field.type) == "message":
            for inner in value if field.is_repeated else (value,):
                found += _messages(inner)
    return found


def _field(rng: random.Random, model: onnx.ModelProto) -> str:
    message = rng.choice(_messages(model))
    field = rng.choice(message.DESCRIPTOR.fields)
    where = f"{message.DESCRIPTOR.name}.{field.name}"
    kind = _TYPES.get(field.type, "other")
    if field.is_repeated:
        values = getattr(message, field.name)
        if len(values) and rng.random() < 0.5:
            if rng.random() < 0.5:
                del values[rng.randrange(len(values))]
            else:
                values.extend([values[rng.randrange(len(values))]] * rng.choice((1, 2, 500)))
        elif kind == "message":
            values.add()
        else:
            value = _hostile(rng, kind)
            values.extend([value] * rng.choice((1, 1, 3)) if value is not None else [])
        return f"{where} has {len(values)} items"
    if rng.random() < 0.2:
        message.ClearField(field.name)
        return f"{where} left out"
    if kind == "message":
        getattr(message, field.name).SetInParent()
        return f"{where} is there"
    value = rng.choice(field.enum_type.values).number if kind == "enum" else _hostile(rng, kind)
    if value is not None:
        setattr(message, field.name, value)
    return f"{where} is {str(value)[:30]!r}"


def _hostile(rng: random.Random, kind: str) -> Any:
    if kind in _WHOLE:
        bits = _WHOLE[kind]
        value = integer(rng) % (1 << bits)
        return value - (1 << bits) if not kind.startswith("u") and value >> (bits - 1) else value
    if kind == "bool":
        return rng.random() < 0.5
    if kind in {"float", "double"}:
        return rng.choice((float("nan"), float("inf"), -0.0, 3e38))
    if kind == "string":
        # The format's texts are UTF-8; half a pair cannot be written here, the wire mutations do that.
        return text(rng).encode("utf-8", "ignore").decode()
    return rng.choice((b"", b"\xff" * 7, bytes(4096))) if kind == "bytes" else None


def _outside(rng: random.Random, model: onnx.ModelProto) -> str:
    """A tensor that lies, or claims to lie, in a file."""
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_location == tensor.EXTERNAL]
    tensor = rng.choice(tensors or list(model.graph.initializer))
    if not tensors:
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value=rng.choice(PATHS))
    entries = {entry.key: entry for entry in tensor.external_data}
    key = rng.choice(("location", "location", "offset", "length", "checksum", "basepath"))
    entry = entries.get(key) or tensor.external_data.add(key=key)
    entry.value = rng.choice(PATHS) if key in {"location", "basepath"} else _numeral(rng)
    return f"{tensor.name}: {key} is {entry.value[:40]}"


def _numeral(rng: random.Random) -> str:
    return rng.choice((str(integer(rng)), "", "x", "1.5", "0x10", "1e9", " 1", "9" * 5000, "-0", "+1"))


def _names(rng: random.Random, model: onnx.ModelProto) -> str:
    """Wires that cross, loop, dangle or are called the same."""
    nodes = list(model.graph.node)
    node, other = rng.choice(nodes), rng.choice(nodes)
    which = rng.choice(("loop", "cross", "twice", "dangling", "empty", "swapped", "operator"))
    if which == "loop" and node.input:
        node.input[rng.randrange(len(node.input))] = node.output[0] if node.output else ""
    elif which == "cross" and node.input and other.output:
        node.input[rng.randrange(len(node.input))] = other.output[0]
    elif which == "twice" and node.output and other.output:
        node.output[0] = other.output[0]
    elif which == "dangling" and node.input:
        node.input[rng.randrange(len(node.input))] = text(rng).encode("utf-8", "ignore").decode()
    elif which == "empty" and node.input:
        del node.input[:]
    elif which == "swapped":
        node.op_type, other.op_type = other.op_type, node.op_type
    else:
        node.op_type = rng.choice(
            ("Softmax", "Loop", "If", "Scan", "MatMul", "Attention", "Einsum", "Reshape", "Expand")
        )
        node.domain = rng.choice(("", "", "com.microsoft", "ai.onnx"))
    return f"node {node.op_type}: {which}"


def _metadata(rng: random.Random, model: onnx.ModelProto) -> str:
    key = rng.choice(("gatenorm.layers", "gatenorm.n_layers", "gatenorm.cross_layers", "gatenorm.n_cross"))
    present = [entry.key for entry in model.metadata_props if entry.key.startswith("gatenorm")]
    key = rng.choice(present or [key])
    value = rng.choice(
        (_numeral(rng), "[0]", "[0, 1]", "[0, 1000000000]", "[" * 100_000, "[]", "null", "[true]", '["a"]')
    )
    entry = next((entry for entry in model.metadata_props if entry.key == key), None) or model.metadata_props.add(
        key=key
    )
    entry.value = value
    return f"metadata {key} is {value[:30]}"


def _tensor(rng: random.Random, model: onnx.ModelProto) -> str:
    tensor = rng.choice(model.graph.initializer)
    which = rng.choice(("dims", "dims", "type", "data", "numbers"))
    if which == "dims":
        dims = [_hostile(rng, "int64") for _ in range(rng.choice((0, 1, 2, 2, 3, 9)))]
        del tensor.dims[:]
        tensor.dims.extend(dims)
    elif which == "type":
        tensor.data_type = rng.randrange(28)
    elif which == "data":
        tensor.raw_data = rng.choice((tensor.raw_data[:-1], tensor.raw_data * 3, b"\xff" * len(tensor.raw_data), b""))
    else:
        tensor.int64_data.extend([_hostile(rng, "int64") for _ in range(4)])
        tensor.ClearField("raw_data")
        tensor.data_type = 7
    return f"tensor {tensor.name}: {which}"


def _attribute(rng: random.Random, model: onnx.ModelProto) -> str:
    node = rng.choice(model.graph.node)
    name = rng.choice(
        ("axis", "perm", "axes", "num_heads", "kv_num_heads", "K", "N", "bits", "block_size", "alpha", "to")
    )
    found = next((entry for entry in node.attribute if entry.name == name), None)
    found = found or (rng.choice(node.attribute) if node.attribute else node.attribute.add(name=name))
    found.type = rng.choice((found.type, found.type, *found.AttributeType.values()))
    found.i = _hostile(rng, "int64")
    found.ints.extend([_hostile(rng, "int64") for _ in range(rng.choice((0, 1, 4)))])
    return f"{node.op_type}.{found.name}: type {found.type}, {found.i}"


def _bomb(rng: random.Random, model: onnx.ModelProto) -> str:
    name = rng.choice(list(BOMBS))
    BOMBS[name](rng, model)
    return f"bomb: {name}"
