"""How many heads an attention has is read off the graph, whatever its layout and whichever lengths are fixed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from fixed_lengths import with_fixed_lengths

from benchmarks.matrix import cells, models
from benchmarks.matrix.producing import Request, produce
from gatenorm_export.inspecting import inspect_graph

# Query heads, key heads, size of one. A batch of as many as the key heads, or as many tokens as query heads, would hide
# a mistake.
HEADS, GROUPS, SIZE = 6, 2, 4
WIDTH = HEADS * SIZE
LENGTHS = {"open": ("B", "T"), "fixed tokens": ("B", "5"), "one of fixed tokens": ("1", "5"), "all fixed": ("3", "5")}

_SCORED = "s = MatMul (q, k) p = Softmax <axis = -1> (s) a = MatMul (p, v)"
_JOINED = "b = Transpose <perm = [0, 2, 1, 3]> (a)"
_QUERY = "q0 = MatMul (n, wq) q1 = Reshape (q0, by_head) q = Transpose <perm = [0, 2, 1, 3]> (q1)"
_GROUPED = """
    k0 = MatMul (n, wk) k1 = Reshape (k0, by_group) v0 = MatMul (n, wk) v1 = Reshape (v0, by_group)
    k2 = Transpose <perm = [0, 2, 1, 3]> (k1) v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
"""
_EACH_OWN = """
    k0 = MatMul (n, wq) k1 = Reshape (k0, by_head) k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v0 = MatMul (n, wq) v1 = Reshape (v0, by_head) v = Transpose <perm = [0, 2, 1, 3]> (v1)
"""
_REPEATED = """
    {0}3 = Unsqueeze ({0}2, two) {0}4 = Expand ({0}3, repeats) {0}5 = Reshape ({0}4, all_heads)
"""
FORMS = {
    "heads behind a Transpose": (_QUERY + _EACH_OWN + _SCORED + _JOINED, HEADS),
    # Neither Reshape says how many heads there are.
    "heads left to the Reshape": ((_QUERY + _EACH_OWN).replace("by_head", "by_size") + _SCORED + _JOINED, HEADS),
    "key heads repeated": (
        _QUERY
        + _GROUPED
        + _REPEATED.format("k")
        + _REPEATED.format("v")
        + "k = Transpose <perm = [0, 1, 3, 2]> (k5) v = Identity (v5)"
        + _SCORED
        + _JOINED,
        GROUPS,
    ),
    "a table spread over the heads": (
        _QUERY
        + _GROUPED
        + "k6 = Mul (k2, table)"
        + _REPEATED.format("k").replace("k2", "k6")
        + _REPEATED.format("v")
        + "k = Transpose <perm = [0, 1, 3, 2]> (k5) v = Identity (v5)"
        + _SCORED
        + _JOINED,
        GROUPS,
    ),
    "one key head, spread by the product": (
        _QUERY
        + "k0 = MatMul (n, w1) k1 = Unsqueeze (k0, one) k = Transpose <perm = [0, 1, 3, 2]> (k1)"
        + "v0 = MatMul (n, w1) v = Unsqueeze (v0, one)"
        + _SCORED
        + _JOINED,
        1,
    ),
    "products of groups": (
        _QUERY
        + _GROUPED
        + "q9 = Reshape (q, in_groups) k3 = Unsqueeze (k2, two) k = Transpose <perm = [0, 1, 2, 4, 3]> (k3)"
        + "v = Unsqueeze (v2, two) s = MatMul (q9, k) p = Softmax <axis = -1> (s) a9 = MatMul (p, v)"
        + "a = Reshape (a9, all_heads)"
        + _JOINED,
        GROUPS,
    ),
    "heads in the batch": (
        _QUERY
        + _EACH_OWN.replace("2, 3, 1", "2, 1, 3")
        + "b0 = Shape <start = 0, end = 1> (x) b1 = Mul (b0, heads) flat = Concat <axis = 0> (b1, any, size)"
        + "back = Concat <axis = 0> (b0, heads, any, size) q9 = Reshape (q, flat) k8 = Reshape (k, flat)"
        + "k9 = Transpose <perm = [0, 2, 1]> (k8) v9 = Reshape (v, flat)"
        + "s = MatMul (q9, k9) p = Softmax <axis = -1> (s) a9 = MatMul (p, v9) a = Reshape (a9, back)"
        + _JOINED,
        HEADS,
    ),
    "three in one": (
        "h = MatMul (n, w3) h1 = Reshape (h, three) h2 = Transpose <perm = [2, 0, 3, 1, 4]> (h1)"
        + "q = Gather <axis = 0> (h2, n0) k1 = Gather <axis = 0> (h2, n1) v = Gather <axis = 0> (h2, n2)"
        + "k = Transpose <perm = [0, 1, 3, 2]> (k1)"
        + _SCORED
        + _JOINED,
        HEADS,
    ),
    "index notation": (
        "q0 = MatMul (n, wq) q = Reshape (q0, by_head) k0 = MatMul (n, wq) k = Reshape (k0, by_head)"
        + "v0 = MatMul (n, wq) v = Reshape (v0, by_head)"
        + 's = Einsum <equation = "bqhd,bkhd->bhqk"> (q, k) p = Softmax <axis = -1> (s)'
        + 'b = Einsum <equation = "bhqk,bkhd->bqhd"> (p, v)',
        HEADS,
    ),
    "values from the left": (
        _QUERY
        + _EACH_OWN.replace("2, 1, 3", "2, 3, 1")
        + "s = MatMul (q, k) p0 = Softmax <axis = -1> (s) p = Transpose <perm = [0, 1, 3, 2]> (p0) a = MatMul (v, p)"
        + "b = Transpose <perm = [0, 3, 1, 2]> (a)",
        HEADS,
    ),
}


def sublayer(text: str, batch: str, tokens: str) -> ir.Model:
    """x + attention(norm(x)) in one of the forms."""
    rng = np.random.default_rng(0)
    # Of a Reshape, 0 copies a length, and -1 is what is left.
    lengths = {
        "by_head": [0, -1, HEADS, SIZE],
        "by_group": [0, -1, GROUPS, SIZE],
        "by_size": [0, 0, -1, SIZE],
        "in_groups": [0, GROUPS, HEADS // GROUPS, -1, SIZE],
        "all_heads": [0, HEADS, -1, SIZE],
        "three": [0, -1, 3, HEADS, SIZE],
        "repeats": [1, 1, HEADS // GROUPS, 1, 1],
        "joined": [0, -1, WIDTH],
    }
    lengths |= {"one": [1], "two": [2], "heads": [HEADS], "any": [-1], "size": [SIZE]}
    weights = {name: np.array(numbers, dtype=np.int64) for name, numbers in lengths.items()}
    weights |= {f"n{number}": np.array(number, dtype=np.int64) for number in range(3)}
    for name, width in {"wq": WIDTH, "wk": GROUPS * SIZE, "w1": SIZE, "w3": 3 * WIDTH}.items():
        weights[name] = rng.normal(size=(WIDTH, width)).astype(np.float32)
    weights |= {"g": np.ones(WIDTH, np.float32), "table": rng.normal(size=(1, 1, 1, SIZE)).astype(np.float32)}
    body = f"n = LayerNormalization (x, g) {text} c = Reshape (b, joined) o = MatMul (c, wq) y = Add (x, o)"
    kind = f"float[{batch}, {tokens}, {WIDTH}]"
    used = set(re.findall(r"\w+", body)) & weights.keys()
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : 17]> f ({kind} x) => ({kind} y) {{ {body} }}',
        initializers=[ir.tensor(weights[name], name=name) for name in sorted(used)],
    )


def heads_found(graph: Path) -> set[tuple[int | None, int | None, int | None]]:
    return {(entry.n_heads, entry.n_kv_heads, entry.head_dim) for entry in inspect_graph(graph).sublayers}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
def test_every_layout(form: str, lengths: str, tmp_path: Path) -> None:
    text, n_kv_heads = FORMS[form]
    batch, tokens = LENGTHS[lengths]
    ir.save(sublayer(text, batch, tokens), tmp_path / "model.onnx")
    feed = {"x": np.ones([int(length) if length.isdigit() else 3 for length in (batch, tokens)] + [WIDTH], np.float32)}
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, feed)
    assert found.shape == feed["x"].shape
    assert heads_found(tmp_path / "model.onnx") == {(HEADS, n_kv_heads, SIZE)}


# Exporter, family, graph where there are several, and what its configuration says.
EXPORTS = [
    ("optimum-encoder", "clip-vision", "", (4, 4, 16)),
    ("optimum-encoder", "siglip-vision", "", (4, 4, 16)),
    ("optimum-encoder", "vit", "", (4, 4, 16)),
    ("optimum-encoder", "bert", "", (4, 4, 16)),
    ("optimum-speech", "whisper", "encoder_model", (4, 4, 16)),
    ("optimum-speech", "whisper", "decoder_model_merged", (4, 4, 16)),
    # Nothing infers the shape of a product of blocks of few bits.
    ("int4-encoder", "clip-vision", "", (4, 4, 16)),
    ("int4", "llama-gqa", "", (4, 2, 16)),
    ("ort-optimizer-encoder", "clip-vision", "", (4, 4, 16)),
    ("optimum", "llama-gqa", "", (4, 2, 16)),
    ("optimum-no-past", "llama-gqa", "", (4, 2, 16)),
    ("optimum-no-past", "gpt2", "", (4, 4, 16)),
    ("optimum-no-past", "falcon-mqa", "", (4, 1, 16)),
    ("optimum-no-past", "deepseek-v3", "", (4, 4, 16)),
    ("optimum", "bloom", "", (4, 4, 16)),
    ("optimum", "opt", "", (4, 4, 16)),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.mark.parametrize(("exporter", "family", "name", "heads"), EXPORTS)
def test_exports_as_they_are_and_with_fixed_lengths(
    exporter: str, family: str, name: str, heads: tuple[int, int, int], cache: Path, tmp_path: Path
) -> None:
    graphs = produce(Request(cache, cells.exporter(exporter), models.family(family)))
    graph = graphs[name] if name else next(iter(graphs.values()))
    assert heads_found(graph) == {heads}
    for batch in (1, 3):
        assert heads_found(with_fixed_lengths(graph, batch, tmp_path / f"{batch}.onnx")) == {heads}
