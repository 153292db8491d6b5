"""From an ONNX graph to one that a flavour of TensorRT takes, in the precision that an engine is to have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gatenorm_export.artifacts import sha256_of, staged_folder
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.graph_checks import blames_graph
from gatenorm_export.graphs import GRAPH_NAME, load_graph
from gatenorm_export.precision.flavour_operators import OPERATORS
from gatenorm_export.precision.graph_changes import (
    Arithmetic,
    Changed,
    arithmetic_in,
    change_graph,
    emulated,
    precision_of,
    quantised_to,
)
from gatenorm_export.precision.measure import CannotMeasure, measure
from gatenorm_export.precision.store import store_graph
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import ConversionCheck, Precision, PreparedGraph
from gatenorm_export.records.graph import GraphFile
from gatenorm_export.shape_inference import check_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

RECORD_NAME = "prepared.json"

_PLAIN = "both graphs operator by operator, in their own precision"
_ROUNDED = "the source in float32; the prepared graph with the result of every node rounded to {}, sums in float32"


@blames_graph
def graph_precision(graph: Path) -> Precision:
    """The precision that a graph is in: fp8 or int4 where it is quantised to that, otherwise that of most weights.

    Raises:
        InputError: it cannot be read.
        RefusedError: it is in none that engines have.
    """
    model = load_graph(graph)
    own = precision_of(model, graph)
    return quantised_to(model) or own


@blames_graph
def graph_arithmetic(graph: Path) -> Arithmetic:
    """What a graph computes in, which of a quantised one is not the type of its weights.

    Raises:
        InputError: it cannot be read.
        RefusedError: it is in a type that no engine computes in.
    """
    return arithmetic_in(load_graph(graph), graph)


@blames_graph
def prepare_graph(
    graph: Path,
    output: Path,
    *,
    flavour: str,
    precision: Precision,
    progress: Progress | None = None,
    measured: bool = True,
) -> PreparedGraph:
    """Lower what ``flavour`` does not take, put the graph into ``precision``, and measure what that changed.

    The result goes to the folder ``output``: ``model.onnx``, its weights, and ``prepared.json``. Where neither is to be
    done nothing is written, and the record's ``place`` is the source itself. In fp16 and bf16 the network's data and
    its cache tensors are in that type; norms, softmax with scores and masks, rotary angles, and every other input and
    output stay in float32. fp8 and int4 are what the graph was quantised to; it passes as it is.

    With ``measured``, the result is held against the source in ONNX Runtime on the CPU, through a left-padded prompt
    and tokens onto the cache; where that cannot be, the record says why.

    Raises:
        InputError: the graph cannot be read, or no such flavour.
        RefusedError: a node can be neither taken nor lowered, or the precision cannot be had; the text names it. The
            same where the converted graph computes numbers that are not finite and the source's are.
        OutputError: the result cannot be written.
    """
    progress = progress or Quiet()
    names: dict[str, Literal["tensorrt", "tensorrt-rtx"]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}
    if flavour not in OPERATORS:
        raise InputError(f"no flavour {flavour}; there are: {', '.join(sorted(OPERATORS))}")
    with progress.task(f"prepare {graph.name} for {flavour} in {precision}"):
        model = load_graph(graph)
        check_shapes(graph)
        changed = change_graph(model, graph, flavour=flavour, precision=precision)
    digest, source = sha256_of(graph), str(graph.resolve())
    if changed.conversion is None and not changed.lowered:
        return PreparedGraph(
            graph=graph.name,
            files=(),
            parent_sha256=digest,
            parent_path=source,
            flavour=names[flavour],
            precision=precision,
            changed=False,
            unmeasured="nothing was changed",
        )
    if (output / GRAPH_NAME).resolve() == graph.resolve():
        raise RefusedError(f"{output}: holds the graph that is to be prepared; choose another folder")
    with staged_folder(output) as staging:
        place = staging / GRAPH_NAME
        conversion = changed.conversion
        store_graph(
            changed.model,
            place,
            graph,
            stored=conversion.stored if conversion is not None else (),
            to=conversion.to if conversion is not None else None,
            progress=progress,
        )
        check: ConversionCheck | None = None
        reason: str | None = "not asked for"
        if measured:
            with progress.task("measure what the conversion changed"):
                check, reason = _checked(graph, place, changed, precision)
        record = PreparedGraph(
            graph=GRAPH_NAME,
            files=tuple(GraphFile.of(path, folder=staging) for path in sorted(staging.iterdir())),
            parent_sha256=digest,
            parent_path=source,
            flavour=names[flavour],
            precision=precision,
            changed=True,
            lowered=changed.lowered,
            wide=dict(conversion.wide) if conversion is not None else {},
            caches=conversion.caches if conversion is not None else (),
            n_casts=conversion.n_casts if conversion is not None else 0,
            check=check,
            unmeasured=reason,
        )
        record.save(staging / RECORD_NAME)
    return record


def _checked(
    graph: Path, place: Path, changed: Changed, precision: Precision
) -> tuple[ConversionCheck | None, str | None]:
    """The comparison, or why there is none.

    Raises:
        RefusedError: the prepared graph's numbers are not finite.
    """
    runnable, how = place, _PLAIN
    if changed.conversion is not None:
        how = _ROUNDED.format(precision)
        runnable = place.with_name("emulated.onnx")
        model = load_graph(place)

        emulated(model, precision)
        _save(model, runnable)
    if changed.rounds_activations:
        how += "; the source rounds what MatMulNBits reads to 8 bits (accuracy_level 4), the prepared graph does not"
    try:
        check = measure(
            graph,
            runnable,
            caches=changed.caches,
            vocabulary=changed.vocabulary,
            weight_bytes=changed.weight_bytes,
            how=how,
        )
    except CannotMeasure as error:
        return None, str(error)
    finally:
        if runnable != place:
            runnable.unlink(missing_ok=True)
    broken = next((entry for entry in check.outputs if not math.isfinite(entry.max_abs)), None)
    if broken is not None and math.isfinite(broken.range):
        other = "bf16 has float32's range" if precision == "fp16" else "build it in another precision"
        raise RefusedError(
            f"{graph}: in {precision} its output {broken.output} is not finite where float32's is; {other}"
        )
    return check, None


def _save(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    path.write_bytes(ir.serde.serialize_model(model).SerializeToString())
