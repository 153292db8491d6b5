"""Lowering of what real exporters write: the same answers through prompt, cache and padding; pruned before or after."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from benchmarks.matrix import cells, models
from benchmarks.matrix.answers import worst_error
from benchmarks.matrix.producing import OTHER_PYTHON, Request, prepare, produce
from benchmarks.matrix.retyping import with_float_activations
from benchmarks.matrix.running import Runner
from gatenorm_export.building import find_flavour
from gatenorm_export.errors import MissingPartError
from gatenorm_export.precision import prepare_graph, takes
from graph_passes import InlineAttentionFunctions, lower_operators, remove_attention

HERE = (
    ("ort-optimizer", "gpt2"),
    ("ort-optimizer-encoder", "bert"),
    ("ort-extended", "llama-gqa"),
    ("int4", "llama-gqa"),
)
ELSEWHERE = (
    ("genai", "llama-gqa"),
    ("genai", "gemma2"),
    ("genai-int4", "llama-gqa"),
    ("attention-op", "llama-gqa"),
    ("transformers5-ort", "llama-gqa"),
)
WIDE = [pytest.param(*case, marks=pytest.mark.wide) for case in ELSEWHERE]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Where the graphs lie; those of the other environment are made by one process, which takes long to start."""
    folder = tmp_path_factory.mktemp("exports")
    chosen = [item.callspec.params for item in request.session.items if item.path == request.path]
    asked = {(params["exporter"], params["family"]) for params in chosen}.intersection(ELSEWHERE)
    if OTHER_PYTHON in os.environ:
        prepare([Request(folder, cells.exporter(name), models.family(family)) for name, family in sorted(asked)])
    return folder


def exported(cache: Path, exporter: str, family: str) -> Path:
    if (exporter, family) in ELSEWHERE and OTHER_PYTHON not in os.environ:
        pytest.skip(f"needs transformers 5; set {OTHER_PYTHON}")
    return next(iter(produce(Request(cache, cells.exporter(exporter), models.family(family))).values()))


def lowered(graph: Path, pruned_first: tuple[int, ...] = (), pruned_last: tuple[int, ...] = ()) -> bytes:
    model = ir.load(graph)
    InlineAttentionFunctions()(model)
    remove_attention(model, pruned_first, kv_names="keep")
    model = lower_operators(model, lambda node: takes("tensorrt", node)).model
    remove_attention(model, pruned_last, kv_names="keep")
    ir.external_data.load_to_model(model)
    return ir.serde.serialize_model(model).SerializeToString()


@pytest.mark.parametrize(("exporter", "family"), [*HERE, *WIDE])
def test_lowered_exports_answer_the_same(exporter: str, family: str, cache: Path) -> None:
    graph = exported(cache, exporter, family)
    # Kernels may round what a packed product reads; a lowered product does not.
    before = Runner.load(with_float_activations(graph), optimise=False)
    after = Runner.load(lowered(graph), optimise=False)
    assert (after.past, after.present, after.answers) == (before.past, before.present, before.answers)
    of_genai = exporter.startswith("genai")
    # GroupQueryAttention takes several tokens onto a past in one row only.
    scripts = [before.script(batch=1 if of_genai else 2)]
    if of_genai:
        scripts.append(replace(scripts[0], batch=2, steps=(7, 1, 1)))
    for script in scripts:
        assert worst_error(after.run(script), before.run(script)) < 1e-5
    for layers in ((0,), (0, 3)):
        first = Runner.load(lowered(graph, pruned_first=layers), optimise=False)
        last = Runner.load(lowered(graph, pruned_last=layers), optimise=False)
        assert (first.past, first.present) == (last.past, last.present)
        assert worst_error(first.run(scripts[-1]), last.run(scripts[-1])) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("exporter", "family"), [HERE[0], HERE[1], *WIDE])
def test_prepared_exports_are_parsed(exporter: str, family: str, precision: str, cache: Path, tmp_path: Path) -> None:
    try:
        trt = find_flavour("tensorrt-rtx").module()
    except MissingPartError as error:
        pytest.skip(str(error))
    graph = exported(cache, exporter, family)
    record = prepare_graph(graph, tmp_path / "out", flavour="tensorrt-rtx", precision=precision)  # type: ignore[arg-type]
    assert record.check is not None, record.unmeasured
    # Packed products of this exporter round what they read to 8 bits, in the source only.
    rounds = "rounds what MatMulNBits reads" in record.check.how
    assert record.check.worst.relative < (1e-1 if rounds else {"fp32": 1e-5, "fp16": 2e-2, "bf16": 1e-1}[precision])
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(record.place(tmp_path / "out"))), parser.get_error(0).desc()
