"""Single nodes of every operator that is lowered, in every form that is known, with inputs to run them on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One node. ``fed`` are inputs, ``held`` are initializers; None is an operand that is absent."""

    name: str
    operator: str
    operands: Mapping[str, np.ndarray | None]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    results: int = 1
    domain: str = MICROSOFT
    opset: int = 21
    held: frozenset[str] = frozenset()

    def proto(self) -> onnx.ModelProto:
        names = [name if array is not None else "" for name, array in self.operands.items()]
        outputs = [f"out_{index}" for index in range(self.results)]
        node = helper.make_node(self.operator, names, outputs, name="the_node", domain=self.domain, **self.attributes)
        given = {name: array for name, array in self.operands.items() if array is not None}
        inputs = [
            helper.make_tensor_value_info(
                name,
                numpy_helper.from_array(array).data_type,
                [f"{name}_{axis}" if axis != array.ndim - 1 else size for axis, size in enumerate(array.shape)],
            )
            for name, array in given.items()
            if name not in self.held
        ]
        weights = [numpy_helper.from_array(array, name) for name, array in given.items() if name in self.held]
        graph = helper.make_graph(
            [node], "case", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs], weights
        )
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def feeds(self) -> Arrays:
        return {name: array for name, array in self.operands.items() if array is not None and name not in self.held}


_RNG = np.random.default_rng(0)


def _r(*shape: int, spread: float = 1.0) -> np.ndarray:
    return (_RNG.normal(size=shape) * spread).astype(np.float32)


def _ints(*numbers: Any, dtype: Any = np.int32) -> np.ndarray:
    return np.array(numbers, dtype)


B, S, P, H, G, D = 2, 4, 3, 4, 2, 16
_HIDDEN = np.tril(np.ones((S, S), bool))
_HIDDEN_ROW = _HIDDEN.copy()
_HIDDEN_ROW[0] = False


def _attention(name: str, *, three: bool = False, results: int = 1, opset: int = 23, **rest: Any) -> Case:
    shapes = ((B, S, H * D), (B, S, G * D)) if three else ((B, H, S, D), (B, G, S, D))
    attributes = dict(rest.pop("attributes", {}))
    if three:
        attributes |= {"q_num_heads": H, "kv_num_heads": G}
    operands: dict[str, np.ndarray | None] = {"q": _r(*shapes[0]), "k": _r(*shapes[1]), "v": _r(*shapes[1])}
    operands |= rest.pop("more", {})
    return Case(f"attention {name}", "Attention", operands, attributes, results, "", opset)


def _past() -> dict[str, np.ndarray | None]:
    return {"mask": None, "past_k": _r(B, G, P, D), "past_v": _r(B, G, P, D)}


def _attention_cases() -> list[Case]:
    lowest = np.where(_HIDDEN_ROW, 0.0, np.finfo(np.float32).min).astype(np.float32)
    both = _past() | {"mask": np.where(_r(B, 1, S, P + S) > -1, 0.0, -np.inf).astype(np.float32)}
    filled = {"k": _r(B, G, 6, D), "v": _r(B, G, 6, D), "mask": None, "a": None, "b": None}
    return [
        _attention("plain"),
        _attention("of three axes", three=True),
        _attention("causal with scale", attributes={"is_causal": 1, "scale": 0.3}),
        _attention("bool mask", more={"mask": _HIDDEN}),
        _attention("bool mask that hides a row", more={"mask": _HIDDEN_ROW[None, None]}),
        _attention("lowest that hides a row", more={"mask": lowest}),
        _attention("endless that hides a row", more={"mask": np.where(_HIDDEN_ROW, 0, -np.inf).astype(np.float32)}),
        _attention("causal and bool mask", attributes={"is_causal": 1}, more={"mask": _r(B, 1, S, S) > -1}),
        _attention("soft cap under a mask", attributes={"softcap": 1.0}, more={"mask": _r(S, S, spread=5.0)}),
        _attention("past", results=3, more=_past()),
        _attention("past, causal", results=3, attributes={"is_causal": 1}, more=_past()),
        _attention("past, mask, three axes", results=3, three=True, more=both),
        _attention("softmax in float32", attributes={"softmax_precision": 1}),
        *(
            _attention(
                f"scores, mode {mode}",
                results=4,
                attributes={"qk_matmul_output_mode": mode, "softcap": 2.0, "is_causal": 1},
                more=_past(),
            )
            for mode in (0, 1, 3)
        ),
        _attention("opset 24, filled", opset=24, more=filled | {"filled": _ints(5, 3, dtype=np.int64)}),
        _attention(
            "opset 24, filled, causal",
            opset=24,
            attributes={"is_causal": 1},
            more=filled | {"filled": _ints(6, 5, dtype=np.int64)},
        ),
    ]


def _group_query(name: str, step: int, past: int, counts: tuple[int, ...], **rest: Any) -> Case:
    batch, packed = len(counts), rest.pop("packed", False)
    attributes = {"num_heads": H, "kv_num_heads": G, **rest.pop("attributes", {})}
    total = rest.pop("total", max(counts) + 1)
    operands: dict[str, np.ndarray | None] = {"q": _r(batch, step, (H + 2 * G) * D if packed else H * D)}
    operands |= {"k": None, "v": None} if packed else {"k": _r(batch, step, G * D), "v": _r(batch, step, G * D)}
    operands |= {"past_k": _r(batch, G, past, D), "past_v": _r(batch, G, past, D)}
    operands |= {"counts": _ints(*counts), "total": np.array(total, np.int32)}
    names = ("cos", "sin", "positions", "bias", "sink")
    operands |= {name: rest.get(name) for name in names}
    while list(operands.values())[-1] is None:
        operands.popitem()
    if "cos" in rest:
        attributes["do_rotary"] = 1
    return Case(f"group query {name}", "GroupQueryAttention", operands, attributes, 3, held=frozenset({"cos", "sin"}))


def _group_query_cases() -> list[Case]:
    table = {"cos": _r(32, D // 2), "sin": _r(32, D // 2)}
    window = {"attributes": {"local_window_size": 2}}
    places = {"positions": _ints([2, 3, 4, 5], [2, 3, 4, 5], dtype=np.int64)}
    return [
        _group_query("prompt", 4, 0, (3, 3)),
        _group_query("prompt, packed, rotary", 4, 0, (3, 3), packed=True, **table),
        _group_query("prompt of different lengths", 4, 0, (3, 1), **table),
        _group_query("prompt, interleaved", 4, 0, (3, 3), attributes={"rotary_interleaved": 1}, **table),
        _group_query("prompt at given positions", 4, 0, (3, 3), **places, **table),
        _group_query("one token at given positions", 1, 4, (4, 4), positions=_ints([7], [2], dtype=np.int64), **table),
        _group_query("one token", 1, 4, (4, 4), **table),
        _group_query("one token, rows of different lengths", 1, 4, (4, 2), **table),
        _group_query("several tokens onto a past", 3, 4, (6,), packed=True, **table),
        _group_query("several tokens, window", 3, 7, (9,), **window, **table),
        _group_query("into a longer buffer", 1, 8, (4, 3), total=5, **table),
        _group_query("prompt into a longer buffer", 4, 8, (3, 3), **table),
        _group_query("window", 6, 0, (5, 5), **window),
        _group_query("window, rows of different lengths", 6, 0, (5, 2), **window),
        _group_query("window of one token", 1, 5, (5, 5), **window),
        _group_query("soft cap", 4, 0, (3, 3), attributes={"softcap": 1.0}),
        _group_query("bias under a soft cap", 4, 0, (3, 3), attributes={"softcap": 1.0}, bias=_r(1, H, 4, 4)),
        _group_query("sink", 4, 0, (3, 3), sink=_r(H)),
        _group_query("smooth softmax", 4, 0, (3, 3), attributes={"smooth_softmax": 1}),
        _group_query("scale", 4, 0, (3, 3), attributes={"scale": 0.7}),
    ]


def _multi_head(name: str, attributes: Mapping[str, Any] | None = None, results: int = 1, **more: Any) -> Case:
    operands: dict[str, np.ndarray | None] = {name: _r(B, S, H * D) for name in "qkv"}
    order = ("bias", "mask", "scores", "past_k", "past_v")
    operands |= {name: more.get(name) for name in order}
    operands |= {name: more[name] for name in "qkv" if name in more}
    while list(operands.values())[-1] is None:
        operands.popitem()
    held = frozenset({"bias"})
    return Case(
        f"multi head {name}", "MultiHeadAttention", operands, {"num_heads": H, **(attributes or {})}, results, held=held
    )


_ONES = _ints([1, 1, 1, 0], [0, 1, 1, 1])


def _multi_head_cases() -> list[Case]:
    past = {"past_k": _r(B, H, P, D), "past_v": _r(B, H, P, D)}
    return [
        _multi_head("plain"),
        _multi_head("bias and scale", {"scale": 0.4}, bias=_r(3 * H * D)),
        _multi_head("unidirectional", {"unidirectional": 1}),
        _multi_head("mask of ones", mask=_ONES),
        _multi_head("mask of ones, unidirectional", {"unidirectional": 1, "mask_filter_value": -3.0}, mask=_ONES),
        _multi_head("mask of lengths", mask=_ints(3, 2)),
        _multi_head("mask of rows", mask=np.tri(S, dtype=np.int32)[None].repeat(B, 0)),
        _multi_head("bias of scores", scores=_r(1, H, S, S)),
        _multi_head("past", results=3, **past),
        _multi_head("past, unidirectional", {"unidirectional": 1}, results=3, **past),
        _multi_head("past, mask", results=3, mask=_ints([1] * 7, [0, 0, *[1] * 5]), **past),
        _multi_head("keys as they are cached", k=_r(B, H, 6, D), v=_r(B, H, 6, D)),
    ]


def _packed_attention(name: str, attributes: Mapping[str, Any] | None = None, results: int = 1, **more: Any) -> Case:
    operands: dict[str, np.ndarray | None] = {"x": _r(B, S, 24), "w": _r(24, 3 * H * D), "b": _r(3 * H * D)}
    operands |= {name: more.get(name) for name in ("mask", "past", "scores")}
    while list(operands.values())[-1] is None:
        operands.popitem()
    held = frozenset({"w", "b"})
    return Case(
        f"packed attention {name}", "Attention", operands, {"num_heads": H, **(attributes or {})}, results, held=held
    )


def _packed_attention_cases() -> list[Case]:
    past = {"past": _r(2, B, H, P, D)}
    longer = _ints([1] * 7, [0, 0, *[1] * 5])
    return [
        _packed_attention("plain"),
        _packed_attention("unidirectional", {"unidirectional": 1}),
        _packed_attention("mask of ones", mask=_ONES),
        _packed_attention("mask of ones, unidirectional", {"unidirectional": 1}, mask=_ONES),
        _packed_attention("mask of rows", mask=np.tri(S, dtype=np.int32)[None].repeat(B, 0)),
        _packed_attention("ends", mask=_ints(3, 2)),
        _packed_attention("ends and starts", mask=_ints(4, 4, 0, 1)),
        _packed_attention("past", results=2, **past),
        _packed_attention("past, unidirectional, mask", {"unidirectional": 1}, results=2, mask=longer, **past),
        _packed_attention("bias of scores", scores=_r(1, H, S, S)),
    ]


def _norm_cases() -> list[Case]:
    x, skip, scale, shift, bias = _r(B, S, 16), _r(B, S, 16), _r(16), _r(16), _r(16)
    two: dict[str, np.ndarray | None] = {"x": x, "skip": skip, "scale": scale}
    words = {"words": _ints([1, 2, 3, 4], [4, 3, 2, 0]), "segments": _ints([0, 0, 1, 1], [0, 1, 1, 1])}
    tables = {"word": _r(11, 16), "place": _r(9, 16), "segment": _r(2, 16), "scale": scale, "shift": shift}
    weights = frozenset({"scale", "shift", "bias", *tables})
    return [
        Case(
            "skip norm",
            "SkipLayerNormalization",
            two | {"shift": shift, "bias": bias},
            {"epsilon": 1e-5},
            4,
            held=weights,
        ),
        Case("skip norm without shift", "SkipLayerNormalization", two, {}, 1, held=weights),
        Case("simple skip norm", "SkipSimplifiedLayerNormalization", two, {"epsilon": 1e-6}, 4, held=weights),
        Case("simple skip norm, bias", "SkipSimplifiedLayerNormalization", two | {"bias": bias}, {}, 4, held=weights),
        Case(
            "simple norm", "SimplifiedLayerNormalization", {"x": x, "scale": scale}, {"axis": -1}, 1, "", held=weights
        ),
        Case("RMS norm", "RMSNormalization", {"x": x, "scale": scale}, {}, 1, "", 23, held=weights),
        Case("layer norm", "LayerNormalization", {"x": x, "scale": scale, "shift": shift}, {}, 1, "", 17, held=weights),
        Case("embeddings", "EmbedLayerNormalization", words | tables, {"epsilon": 1e-6}, 2, held=weights),
        Case(
            "embeddings, mask",
            "EmbedLayerNormalization",
            words | tables | {"mask": _ints([1, 1, 1, 0], [1, 1, 0, 0])},
            {"mask_index_type": 1},
            3,
            held=weights,
        ),
    ]


def _rotary_cases() -> list[Case]:
    four, three = _r(B, H, S, D), _r(B, S, H * D)
    places = _ints([0, 1, 2, 3], [5, 6, 7, 8], dtype=np.int64)
    full = {"cos": _r(32, D // 2), "sin": _r(32, D // 2)}
    half = {"cos": _r(32, D // 4), "sin": _r(32, D // 4)}
    tables = frozenset({"cos", "sin"})

    def microsoft(name: str, x: np.ndarray, where: np.ndarray, table: Arrays, **attributes: Any) -> Case:
        return Case(f"rotary, {name}", "RotaryEmbedding", {"x": x, "p": where, **table}, attributes, held=tables)

    def standard(name: str, x: np.ndarray, table: Arrays, where: np.ndarray | None, **attributes: Any) -> Case:
        operands = {"x": x, **table, **({} if where is None else {"p": where})}
        held = tables if where is not None else frozenset()
        return Case(f"rotary 23, {name}", "RotaryEmbedding", operands, attributes, 1, "", 23, held=held)

    angles = {"cos": _r(B, S, D // 2), "sin": _r(B, S, D // 2)}
    return [
        microsoft("four axes", four, places, full),
        microsoft("three axes", three, places, full),
        microsoft("interleaved", four, places, full, interleaved=1),
        microsoft("one position", four, _ints(3, dtype=np.int64), full),
        microsoft("part", three, places, half, num_heads=H, rotary_embedding_dim=D // 2),
        standard("four axes", four, full, places),
        standard("three axes", three, full, places, num_heads=H),
        standard("interleaved", four, full, places, interleaved=1),
        standard("part", four, half, places, rotary_embedding_dim=D // 2),
        standard("angles", four, angles, None),
    ]


def _other_cases() -> list[Case]:
    x, bias = _r(B, S, 32, spread=2.0), _r(32)
    packed = {bits: _RNG.integers(0, 256, (24, 2, 16 * bits // 8)).astype(np.uint8) for bits in (4, 8)}
    zeros = _RNG.integers(0, 256, (24, 1)).astype(np.uint8)
    eights = np.full((24, 1), 0x88, np.uint8)
    scales = _r(24, 2)
    sizes = {"K": 32, "N": 24, "block_size": 16}
    held = frozenset({"w", "s", "z", "g", "b"})

    def bits(name: str, count: int, *more: tuple[str, np.ndarray | None]) -> Case:
        operands = {"x": x, "w": packed[count], "s": scales, **dict(more)}
        return Case(f"packed weight, {name}", "MatMulNBits", operands, {**sizes, "bits": count}, held=held)

    def fused(name: str, a: np.ndarray, b: np.ndarray, **attributes: Any) -> Case:
        return Case(f"product, {name}", "FusedMatMul", {"a": a, "b": b}, attributes)

    return [
        Case("gelu", "Gelu", {"x": x}),
        Case("gelu 20", "Gelu", {"x": x}, {}, 1, "", 20),
        Case("gelu 20, tanh", "Gelu", {"x": x}, {"approximate": "tanh"}, 1, "", 20),
        Case("bias gelu", "BiasGelu", {"x": x, "b": bias}, held=held),
        Case("fast gelu", "FastGelu", {"x": x}),
        Case("fast gelu with bias", "FastGelu", {"x": x, "b": bias}, held=held),
        Case("quick gelu", "QuickGelu", {"x": x}, {"alpha": 1.702}),
        Case("silu", "QuickGelu", {"x": x}, {"alpha": 1.0}),
        fused("alpha", _r(B, S, 8), _r(B, 8, 5), alpha=0.5),
        fused("transposed", _r(B, 8, S), _r(B, 5, 8), transA=1, transB=1),
        fused("batch axes", _r(S, B, 8), _r(B, 8, 5), transBatchA=1),
        fused("batch axes and transposed", _r(S, B, 8), _r(8, B, 5), transBatchA=1, transBatchB=1, alpha=2.0),
        bits("4 bits", 4),
        bits("4 bits, zero points", 4, ("z", zeros)),
        bits("4 bits, eights", 4, ("z", eights)),
        bits("8 bits, bias", 8, ("z", None), ("g", None), ("b", _r(24))),
        bits("4 bits, real zero points", 4, ("z", _r(24, 2, spread=3.0))),
    ]


CASES: tuple[Case, ...] = (
    *_attention_cases(),
    *_group_query_cases(),
    *_multi_head_cases(),
    *_packed_attention_cases(),
    *_norm_cases(),
    *_rotary_cases(),
    *_other_cases(),
)
