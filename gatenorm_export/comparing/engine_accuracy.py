"""Is an engine right? Through polygraphy's Comparator, against the graph that it was built from, with a cache.

Engine and graph get the same tokens and keep a cache each, as they would in use: a prompt, tokens onto the cache one at
a time, a few at once, and again one at a time, with padding on the left. Logits and every present tensor are compared.
The difference holds rounding and what the builder did, and nothing of pruning: the graph has the same layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gatenorm_export.benching.failures import NoMemoryError, one_line
from gatenorm_export.comparing.engine_judging import Tolerance, judge, limit_of, span_of, summary_of, tolerance_of
from gatenorm_export.comparing.engine_steps import make_steps, vocabulary_of
from gatenorm_export.decode_signature import signature_of
from gatenorm_export.errors import RefusedError, needs
from gatenorm_export.precision import graph_arithmetic
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import EngineAccuracy, EngineArtifact, OutputAccuracy, Profile
from gatenorm_export.silence import silent_polygraphy


@dataclasses.dataclass(frozen=True)
class Found:
    """What a comparison found: outputs in the graph's order, and whether all agree."""

    steps: tuple[str, ...]
    outputs: tuple[OutputAccuracy, ...]
    passed: bool | None
    reason: str


def engine_runner(path: Path, record: EngineArtifact) -> Any:
    """polygraphy's runner of an engine, not activated yet. The engine is loaded when it is.

    Raises:
        MissingPartError: the engine's TensorRT is not installed.
    """
    from gatenorm_export.building import find_flavour

    find_flavour(record.flavour).module()
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(BytesFromPath(str(path))), name=record.engine)


def check_engine(
    path: Path,
    record: EngineArtifact,
    graph: Path,
    role: Literal["unpruned", "pruned"],
    *,
    device: str,
    make_runner: Callable[[Path, EngineArtifact], Any] | None = None,
    progress: Progress | None = None,
) -> EngineAccuracy:
    """Run an engine and the graph that it was built from; the record says whether they agree.

    ``make_runner`` gives another runner than :func:`engine_runner`'s, to stand for the engine.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
        RefusedError: the engine fails while it runs, or the graph is in a type that no engine computes in.
    """
    progress = progress or Quiet()
    tolerance = tolerance_of(record, graph_arithmetic(graph))
    with needs("ort", "comparing engines"):
        import onnxruntime
    with progress.task(f"compare {record.engine} with its graph"):
        found = compare_runner(
            graph, (make_runner or engine_runner)(path, record), tolerance, name=record.engine, profiles=record.profiles
        )
    reference = f"ONNX Runtime {onnxruntime.__version__} CPU"
    return accuracy_record(record, role, found, tolerance, device=device, reference=reference)


def accuracy_record(
    record: EngineArtifact,
    role: Literal["unpruned", "pruned"],
    found: Found,
    tolerance: Tolerance,
    *,
    device: str,
    reference: str,
) -> EngineAccuracy:
    """The finding with what the engine's own record tells."""
    prepared = record.prepared
    return EngineAccuracy(
        role=role,
        engine=record.engine,
        engine_sha256=record.sha256,
        graph_sha256=record.parent_sha256,
        flavour=f"{record.flavour} {record.flavour_version}",
        precision=record.precision,
        device=device,
        reference=reference,
        steps=found.steps,
        outputs=found.outputs,
        tolerance_from=tolerance.words,
        conversion=prepared.check if prepared is not None else None,
        conversion_unmeasured=(prepared.unmeasured or "") if prepared is not None else "",
        passed=found.passed,
        reason=found.reason,
    )


def compare_runner(
    graph: Path, runner: Any, tolerance: Tolerance, *, name: str = "engine", profiles: tuple[Profile, ...] = ()
) -> Found:
    """Hold any polygraphy runner that takes and gives what ``graph`` does against ``graph`` in ONNX Runtime on the CPU.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
        RefusedError: the graph is no decoder, or the runner fails while it runs.
    """
    with needs("ort", "comparing engines"):
        from polygraphy.backend.onnxrt import OnnxrtRunner
        from polygraphy.comparator import Comparator, CompareFunc
    from gatenorm_export.comparing.step_runner import StepRunner, visible
    from gatenorm_export.sessions import open_session

    session = open_session(graph, exact_int4=True)
    signature = signature_of(session, graph)
    names, feeds = make_steps(signature, vocabulary_of(session, signature), profiles)
    reference = StepRunner(OnnxrtRunner(lambda: session), signature, "graph")
    candidate = StepRunner(runner, signature, "engine", profiles=profiles)
    with silent_polygraphy():
        with _failures(str(graph)):
            expected = Comparator.run([reference], data_loader=feeds)
        try:
            with _failures(name):
                results = Comparator.run([candidate], data_loader=feeds)
        except RefusedError as error:
            if not candidate.unknown:
                raise
            return Found(names, (), False, f"FAILED: {name} is no engine of this graph: {error}")
        wanted, got = (list(next(iter(part.values()))) for part in (expected, results))
        expected.extend(results)
        masks = [
            {output: visible(signature, output, feed, np.shape(step[output])) for output in step.keys()}  # noqa: SIM118
            for feed, step in zip(feeds, wanted, strict=True)
        ]
        spans = {
            output: span_of([step[output] for step in wanted], [mask[output] for mask in masks])
            for output in (signature.logits, *signature.present)
        }
        limits = {output: limit_of(tolerance.of(output), *span) for output, span in spans.items()}
        compared = Comparator.compare_accuracy(
            expected,
            compare_func=CompareFunc.simple(rtol=0.0, atol=limits, check_error_stat="max"),
        )
        verdicts = [dict(step) for step in next(iter(compared[0].values()))]
    outputs = tuple(
        judge(
            output,
            names,
            [step[output] for step in wanted],
            [step[output] for step in got],
            [bool(step.get(output, False)) for step in verdicts],
            spans[output][0],
            limits[output],
        )
        for output in spans
    )
    return Found(names, outputs, *summary_of(names, outputs))


@contextlib.contextmanager
def _failures(name: str) -> Iterator[None]:
    """One line for whatever a runtime throws, a GPU that is lost among it."""
    try:
        with one_line(name, "a step of the accuracy check"):
            yield
    except NoMemoryError as error:
        raise RefusedError(f"{name}: {error}; compare it on a machine with more") from error
