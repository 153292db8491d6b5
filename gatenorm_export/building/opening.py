"""Engines as files: checked against their record, against this machine, and two of them against each other."""

from __future__ import annotations

from pathlib import Path

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.building.flavours import find_flavour
from gatenorm_export.building.gpus import Gpu, find_gpu
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.records import EngineArtifact
from gatenorm_export.small_files import inside

PORTABLE = ("8.0", "8.6", "8.9", "12.0+")
"""What TensorRT-RTX builds for unless told otherwise, by its documentation: these compute capabilities and newer."""

# The first bytes of a file, as far as a user may take one for an engine.
_TRAITS = (
    (b"vtrt", "an engine of TensorRT-RTX"),
    (b"ftrt", "an engine of TensorRT"),
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"{", "a text file"),
)


def record_file(engine: Path) -> Path:
    """Where an engine's record lies."""
    return engine.with_name(f"{engine.name}.json")


def read_engine(path: Path) -> EngineArtifact:
    """The record beside an engine, with the engine's bytes held against it. Needs neither TensorRT nor a GPU.

    Raises:
        InputError: no engine, no record, no engine's record, or the engine is not the one that it describes.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such engine; gatenorm build makes one")
    beside = inside(path.parent, record_file(path).name)
    if not beside.is_file():
        raise InputError(
            f"{path}: has no record {beside.name} beside it, and looks like {_looks_like(path)}; gatenorm build writes "
            "engine and record"
        )
    record = EngineArtifact.load(beside)
    size = path.stat().st_size
    if size != record.bytes:
        how = "is cut off" if size < record.bytes else "is too long"
        raise InputError(
            f"{path}: {how} or is not the engine that {beside.name} describes: {size:,} bytes, there are to be "
            f"{record.bytes:,}; it looks like {_looks_like(path)}; copy it again, or build it again"
        )
    digest = sha256_of(path)
    if digest != record.sha256:
        raise InputError(
            f"{path}: is not the engine that {beside.name} describes: its sha256 is {digest[:12]}, that of the record "
            f"{record.sha256[:12]}; it looks like {_looks_like(path)}; copy it again, or build it again"
        )
    return record


def open_engine(path: Path) -> EngineArtifact:
    """The record of an engine that this machine can load, after every check that can be made before loading.

    Raises:
        InputError: see :func:`read_engine`.
        MissingPartError: the engine's TensorRT is not installed.
        RefusedError: it was built by another version or for another GPU, or there is no GPU.
    """
    record = read_engine(path)
    check_runnable(path, record)
    return record


def check_runnable(path: Path, record: EngineArtifact) -> None:
    """Hold an engine against the TensorRT that is installed and the GPU that is there.

    Raises:
        MissingPartError: the engine's TensorRT is not installed.
        RefusedError: it was built by another version or for another GPU, or there is no GPU.
    """
    check_version(path, record)
    gpu = find_gpu()
    if gpu is None:
        raise RefusedError(
            f"{path}: running an engine needs an NVIDIA GPU, and this machine shows none; it was built for "
            f"{_built_for(record)}; take the ONNX graph that it was built from"
        )
    if not _fits(record, gpu):
        raise RefusedError(f"{path}: was built for {_built_for(record)}, and this machine has {gpu}; build it again")


def check_version(path: Path, record: EngineArtifact) -> None:
    """Hold an engine against the TensorRT that is installed. Needs no GPU.

    Raises:
        MissingPartError: the engine's TensorRT is not installed.
        RefusedError: it was built by another version.
    """
    flavour = find_flavour(record.flavour)
    if flavour.version != record.flavour_version:
        raise RefusedError(
            f"{path}: was built by {record.flavour} {record.flavour_version}, and {flavour.version} is installed; an "
            "engine runs on the version that built it, build it again"
        )


def _fits(record: EngineArtifact, gpu: Gpu) -> bool:
    if record.flavour == "tensorrt":
        # Kernels are chosen by what they take on the GPU that builds. Records without one come from older versions.
        return record.gpu is None or record.gpu == str(gpu)
    return any(_covers(capability, gpu.capability) for capability in record.capabilities or PORTABLE)


def _covers(listed: str, found: str) -> bool:
    if not listed.endswith("+"):
        return listed == found
    return _number(found) >= _number(listed[:-1])


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def _built_for(record: EngineArtifact) -> str:
    if record.flavour == "tensorrt":
        return record.gpu or record.built_on
    listed = [capability.replace("+", " and newer") for capability in record.capabilities or PORTABLE]
    return f"compute capability {', '.join(listed)}"


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        return "an empty file"
    for start, what in _TRAITS:
        if head.startswith(start):
            return what
    # ONNX: field 1 of the model is its version, a small number; exporters name themselves right behind it.
    if head[:1] == b"\x08" and len(head) > 4 and 0 < head[1] < 32 and head[2:3] in (b"\x12", b":", b"B", b"\x1a"):
        return "an ONNX graph"
    return "no engine at all"


def check_pair(base: EngineArtifact, pruned: EngineArtifact) -> None:
    """Make sure that two engines can be compared: the second is of the first's graph, pruned, and built alike.

    Raises:
        RefusedError: one engine twice, swapped, from different parents, or built by other tools, in other precisions
            or with other profiles; the text says which.
    """
    names = f"{base.engine} and {pruned.engine}"
    if base.parent_sha256 == pruned.parent_sha256:
        raise RefusedError(f"{names} were built from the same graph; there is nothing to compare")
    if pruned.parent_sha256 in (base.ancestors or ()):
        raise RefusedError(f"{names} are swapped: {base.engine} is the pruned one; name the base first")
    if pruned.ancestors is None:
        raise RefusedError(
            f"{pruned.engine}: was built from a graph without a manifest, so nothing tells that it is {base.engine}'s "
            "graph pruned; prune it with gatenorm and build it again"
        )
    recovered = pruned.recovered_from is not None and pruned.recovered_from == base.model_digest
    if base.parent_sha256 not in pruned.ancestors and not recovered:
        parent = f"graph {pruned.ancestors[0][:12]}" if pruned.ancestors else "no other graph, for it is not pruned"
        raise RefusedError(
            f"{names} are no pair: {pruned.engine} comes from {parent}, and {base.engine} was built from "
            f"{base.parent_sha256[:12]}; compare it with its own parent"
        )
    for what, before, after in (
        ("flavour", f"{base.flavour} {base.flavour_version}", f"{pruned.flavour} {pruned.flavour_version}"),
        ("precision", base.precision, pruned.precision),
        ("GPU", _built_for(base), _built_for(pruned)),
    ):
        if before != after:
            raise RefusedError(f"{names} differ in {what}: {before} and {after}; build both alike")
    _check_profiles(names, base, pruned)


def _check_profiles(names: str, base: EngineArtifact, pruned: EngineArtifact) -> None:
    before = {profile.name: {bound.input: bound for bound in profile.bounds} for profile in base.profiles}
    after = {profile.name: {bound.input: bound for bound in profile.bounds} for profile in pruned.profiles}
    if list(before) != list(after):
        raise RefusedError(f"{names} have other profiles: {', '.join(before)} and {', '.join(after)}; build both alike")
    for name, bounds in before.items():
        for entry, bound in bounds.items():
            # A pruned engine has fewer cache inputs; what both have must admit the same.
            other = after[name].get(entry)
            if other is not None and other != bound:
                raise RefusedError(
                    f"{names} differ in profile {name}: {entry} is {list(bound.min)} to {list(bound.max)}, typically "
                    f"{list(bound.opt)}, and {list(other.min)} to {list(other.max)}, typically {list(other.opt)}; "
                    "build both alike"
                )
