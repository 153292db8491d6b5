"""Check a bundle where it lies: untouched, its manifest true of its graph, loadable, and computing what it did."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.bundling.agreement import first_untruth
from gatenorm_export.bundling.asking import Question, ask
from gatenorm_export.bundling.engines import check_entry, run_engine
from gatenorm_export.bundling.interface import read_interface
from gatenorm_export.bundling.opening import Bundle, read_manifest, reproducible_digest, touched_files
from gatenorm_export.bundling.side import check_genai_names
from gatenorm_export.bundling.stepping import check_session, open_graph
from gatenorm_export.bundling.tokenizer import TOKENIZER, check_tokenizer
from gatenorm_export.comparing.failures import runtime_failures
from gatenorm_export.errors import GateNormError, InputError, MissingPartError, RefusedError, UsageError
from gatenorm_export.genai_config import GENAI_CONFIG
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import (
    BundleCheck,
    BundleEngine,
    BundleManifest,
    BundleVerification,
    ModelSpec,
    PrunedGraph,
)


@dataclasses.dataclass(frozen=True)
class VerifyRequest:
    """What to check. ``seal`` is the one that `gatenorm bundle` printed, kept outside the bundle; with ``files_only``
    nothing is loaded or run. ``model`` is the source checkpoint, against which faithfulness is proved anew."""

    folder: Path
    seal: str | None = None
    files_only: bool = False
    model: str | None = None


def verify_bundle(request: VerifyRequest, *, progress: Progress | None = None) -> BundleVerification:
    """Run every check that this machine can; of a bundle that was touched nothing is loaded.

    Raises:
        UsageError: what is asked for does not go together, or the seal is none.
        InputError: the folder is no bundle, or there is no such model.
        MissingPartError: a package that running the graph needs is not installed.
    """
    progress = progress or Quiet()
    if request.files_only and request.model is not None:
        raise UsageError("--files-only runs nothing, and --model needs the graph to run; leave one out")
    if request.seal is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", request.seal):
        raise UsageError(f"--seal {request.seal!r}: give the 64 hexadecimal digits that `gatenorm bundle` printed")
    manifest = read_manifest(request.folder)
    with progress.task("digest the files"):
        touched = touched_files(request.folder, manifest)
    checks = [_manifest(manifest, request.seal), _files(manifest, touched)]
    if all(check.passed for check in checks) and not request.files_only:
        bundle = Bundle(request.folder, manifest)
        checks.extend(_graph(bundle, progress))
        checks.extend(_engine(bundle, engine, progress) for engine in manifest.engines)
        if request.model is not None:
            checks.append(_faithfulness(bundle, request.model, progress))
    return BundleVerification(bundle=str(request.folder), seal=manifest.seal, touched=touched, checks=tuple(checks))


def _manifest(manifest: BundleManifest, expected: str | None) -> BundleCheck:
    told = manifest.reproducible_sha256
    if told is not None and told != reproducible_digest(manifest, as_read=True):
        finding = "its reproducible_sha256 is not that of what it tells"
        return BundleCheck(check="manifest", passed=False, finding=finding)
    if expected is None:
        finding = "as it was sealed; --seal holds it against the seal that gatenorm bundle printed"
        return BundleCheck(check="manifest", passed=True, finding=finding)
    if expected.lower() == manifest.seal:
        return BundleCheck(check="manifest", passed=True, finding="the seal is the expected one")
    finding = f"the seal is {manifest.seal[:12]} and not {expected[:12]}: another bundle, or one that was sealed anew"
    return BundleCheck(check="manifest", passed=False, finding=finding)


def _files(manifest: BundleManifest, touched: tuple[str, ...]) -> BundleCheck:
    if touched:
        more = f"; and {len(touched) - 8} more" if len(touched) > 8 else ""
        return BundleCheck(check="files", passed=False, finding="; ".join(touched[:8]) + more)
    total = sum(file.bytes for file in manifest.files)
    return BundleCheck(
        check="files", passed=True, finding=f"{len(manifest.files)} files of {total:,} bytes, all as they were"
    )


def _graph(bundle: Bundle, progress: Progress) -> Iterator[BundleCheck]:
    """The graph and its configs, from what can be read to what must be run; what follows a failure is left out."""
    manifest, path = bundle.manifest, bundle.graph_path
    if manifest.graph is None or path is None:
        yield BundleCheck(check="load", passed=None, finding="the bundle holds engines alone")
        return
    with progress.task("read the graph"):
        found = read_interface(path, manifest.graph.file)
        companions = [read_interface(bundle.path(told.file), told.file).graph for told in manifest.companions]
        configs = bundle.configs()
        finding = first_untruth(bundle, found, configs)
        if companions != list(manifest.companions):
            finding = finding or "what the manifest tells of the other graphs is not theirs"
    if finding is not None:
        yield BundleCheck(check="signature", passed=False, finding=finding)
        return
    yield BundleCheck(check="signature", passed=True, finding=_signature_words(manifest))
    try:
        if any(file.name == GENAI_CONFIG for file in manifest.files):
            check_genai_names(bundle.path(GENAI_CONFIG), {file.name for file in manifest.files})
        if any(file.name == TOKENIZER for file in manifest.files):
            check_tokenizer(bundle.path(TOKENIZER))
        with progress.task("load the graph"):
            session = open_graph(path)
            check_session(session, manifest.graph)
    except MissingPartError:
        raise
    except GateNormError as error:
        yield BundleCheck(check="load", passed=False, finding=str(error))
        return
    yield BundleCheck(check="load", passed=True, finding="ONNX Runtime loads the graph, and it is the manifest's")
    question = Question(manifest.task, path, session, manifest.graph, manifest.decoding, configs, manifest.probe)
    with progress.task("probe the graph"):
        yield _probed(question)


def _signature_words(manifest: BundleManifest) -> str:
    left = sum(new is not None for new in manifest.layer_map.values())
    caches = manifest.decoding.caches if manifest.decoding is not None else ()
    return f"the graph's own: attention in {left} of {manifest.n_layers} layers, {len(caches)} cache tensors"


def _probed(question: Question) -> BundleCheck:
    try:
        with runtime_failures(question.path.name):
            result = ask(question)
    except (RefusedError, InputError) as error:
        return BundleCheck(check="probe", passed=False, finding=str(error))
    if isinstance(result, str):
        return BundleCheck(check="probe", passed=None, finding=result)
    return BundleCheck(check="probe", passed=result.passed, finding=result.finding)


def _engine(bundle: Bundle, engine: BundleEngine, progress: Progress) -> BundleCheck:
    path = bundle.engine_path(engine)
    try:
        record = check_entry(path, engine, bundle.manifest.graph_sha256)
    except GateNormError as error:
        return BundleCheck(check="engine", passed=False, finding=str(error))
    try:
        passed, finding = run_engine(path, record, bundle.graph_path, progress)
    except GateNormError as error:
        return BundleCheck(check="engine", passed=None, finding=f"its record fits; not run here: {error}")
    return BundleCheck(check="engine", passed=passed, finding=f"{path.name}: {finding}")


def _faithfulness(bundle: Bundle, name: str, progress: Progress) -> BundleCheck:
    """The graph against the framework model without the removed attention, as `gatenorm compare` proves it."""
    from gatenorm_export.sources import resolve_model

    spec = resolve_model(name, progress=progress)
    if bundle.manifest.model is None or bundle.manifest.model.digest != spec.digest:
        finding = f"{name} is not the checkpoint that the bundle was made from"
        return BundleCheck(check="faithfulness", passed=False, finding=finding)
    passed, finding = _proved(bundle, spec, progress)
    return BundleCheck(check="faithfulness", passed=passed, finding=finding)


def _proved(bundle: Bundle, spec: ModelSpec, progress: Progress) -> tuple[bool | None, str]:
    from gatenorm_export.comparing import check_faithfulness
    from gatenorm_export.repairs import repairs_of

    graph = bundle.graph_path
    if graph is None:
        return None, "the bundle holds engines alone"
    record = bundle.record()
    pruned = record if isinstance(record, PrunedGraph) else None
    repair = pruned.repair if pruned is not None else None
    found = check_faithfulness(
        graph,
        spec,
        bundle.manifest.dropped,
        repairs=repairs_of(graph, repair) if repair is not None else None,
        tower=record.tower if record is not None else "",
        cross=pruned.dropped_cross if pruned is not None else (),
        progress=progress,
    )
    return found.passed, found.reason
