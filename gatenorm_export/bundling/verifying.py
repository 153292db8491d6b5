"""Check a bundle where it lies: untouched, its manifest true of its graph, loadable, and computing what it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from gatenorm_export.building.opening import check_runnable, read_engine
from gatenorm_export.bundling.interface import read_interface
from gatenorm_export.bundling.opening import Bundle, read_manifest, touched_files
from gatenorm_export.bundling.probe import run_probe, tolerance_of
from gatenorm_export.bundling.stepping import Stepper, check_session, open_graph
from gatenorm_export.errors import GateNormError, MissingPartError
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import BundleCheck, BundleManifest, BundleVerification


@dataclasses.dataclass(frozen=True)
class VerifyRequest:
    """What to check. ``seal`` is the one that `gatenorm bundle` printed, kept outside the bundle; with ``files_only``
    nothing is loaded or run."""

    folder: Path
    seal: str | None = None
    files_only: bool = False


def verify_bundle(request: VerifyRequest, *, progress: Progress | None = None) -> BundleVerification:
    """Run every check that this machine can; a bundle that was touched is not loaded.

    Raises:
        InputError: the folder is no bundle.
        MissingPartError: a package that running the graph needs is not installed.
    """
    progress = progress or Quiet()
    manifest = read_manifest(request.folder)
    with progress.task("digest the files"):
        touched = touched_files(request.folder, manifest)
    checks = [_seal(manifest, request.seal), _files(manifest, touched)]
    if all(check.passed is not False for check in checks) and not request.files_only:
        checks.extend(_running(Bundle(request.folder, manifest), progress))
    return BundleVerification(bundle=str(request.folder), seal=manifest.seal, touched=touched, checks=tuple(checks))


def _seal(manifest: BundleManifest, expected: str | None) -> BundleCheck:
    if expected is None:
        finding = "the manifest is as it was sealed; --seal holds it against the seal that `gatenorm bundle` printed"
        return BundleCheck(check="manifest", passed=True, finding=finding)
    if expected == manifest.seal:
        return BundleCheck(check="manifest", passed=True, finding="the seal is the expected one")
    finding = f"the seal is {manifest.seal[:12]}, not {expected[:12]}: this is another bundle, or it was made over"
    return BundleCheck(check="manifest", passed=False, finding=finding)


def _files(manifest: BundleManifest, touched: tuple[str, ...]) -> BundleCheck:
    if touched:
        return BundleCheck(check="files", passed=False, finding="; ".join(touched[:8]))
    total = sum(file.bytes for file in manifest.files)
    finding = f"{len(manifest.files)} files of {total:,} bytes are as they were"
    return BundleCheck(check="files", passed=True, finding=finding)


def _running(bundle: Bundle, progress: Progress) -> Iterator[BundleCheck]:
    manifest = bundle.manifest
    path = bundle.graph_path
    if manifest.graph is not None and path is not None:
        yield _cache(bundle, path)
        yield from _graph(bundle, path, progress)
    for engine in manifest.engines:
        yield _engine(bundle.engine_path(engine))


def _cache(bundle: Bundle, path: Path) -> BundleCheck:
    """The manifest's inputs, outputs and caches against the graph's own."""
    manifest = bundle.manifest
    assert manifest.graph is not None
    found = read_interface(path, manifest.graph.file)
    told = manifest.decoding.caches if manifest.decoding is not None else found.caches
    for what, here, there in (
        ("inputs", found.graph.inputs, manifest.graph.inputs),
        ("outputs", found.graph.outputs, manifest.graph.outputs),
        ("caches", found.caches, told),
        ("layers", found.n_layers, manifest.n_layers),
    ):
        if here != there:
            finding = f"the manifest's {what} are not the graph's"
            return BundleCheck(check="cache", passed=False, finding=finding)
    left = sum(new is not None for new in manifest.layer_map.values())
    finding = f"{len(told)} cache tensors of {left} of {manifest.n_layers} layers are the graph's own"
    return BundleCheck(check="cache", passed=True, finding=finding)


def _graph(bundle: Bundle, path: Path, progress: Progress) -> Iterator[BundleCheck]:
    manifest = bundle.manifest
    assert manifest.graph is not None
    try:
        with progress.task("load the graph"):
            session = open_graph(path)
            check_session(session, manifest.graph)
    except MissingPartError:
        raise
    except GateNormError as error:
        yield BundleCheck(check="load", passed=False, finding=str(error))
        return
    yield BundleCheck(check="load", passed=True, finding="ONNX Runtime loads the graph")
    if manifest.decoding is None or manifest.probe is None:
        yield BundleCheck(check="probe", passed=None, finding=f"no probe: {manifest.no_decoding}")
        return
    with progress.task("probe the graph"):
        stepper = Stepper(session, manifest.decoding)
        result = run_probe(stepper, manifest.probe.prompt, tolerance_of(manifest.graph), manifest.probe.answer)
    yield BundleCheck(check="probe", passed=result.passed, finding=result.finding)


def _engine(path: Path) -> BundleCheck:
    record = read_engine(path)
    try:
        check_runnable(path, record)
    except GateNormError as error:
        return BundleCheck(check="engines", passed=None, finding=f"not loaded here: {error}")
    return BundleCheck(check="engines", passed=True, finding=f"{path.name} can be loaded here")
