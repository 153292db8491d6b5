"""A TensorRT engine: what it was built from, with what and for what; this is known without loading it."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.prepared import Precision, PreparedGraph


class ProfileBounds(Part):
    """Lower, typical and upper shape of one engine input in one optimisation profile."""

    input: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Profile(Part):
    """One optimisation profile."""

    name: str
    bounds: tuple[ProfileBounds, ...]


class EngineArtifact(Record):
    """A TensorRT engine, the graph it was built from, and where it runs. Lies beside the engine as ``ENGINE.json``.

    ``parent_sha256`` is the digest of the ONNX file; ``network_sha256`` is over its data files too. ``ancestors`` are
    the digests of the ONNX files that the graph was pruned from, the nearest first; ``dropped`` are the layers without
    self-attention of the model's ``n_layers``. Both are None where nobody recorded them.

    ``prepared`` says what was lowered and converted before the build, where something was. ``weight_bytes`` are those
    of all constants in the parsed network, ``peak_bytes`` the most memory that parser and builder had. ``gpu`` is that
    of the machine that built; ``capabilities`` are the compute capabilities that the engine runs on ("12.0+" and newer
    ones). ``build_seconds`` is all that the build took, the builder's share of it is ``compile_seconds``; of an engine
    ``from_cache`` they are those of the build that made it.
    """

    kind: Literal["engine"] = "engine"
    engine: str
    sha256: str
    bytes: int
    parent_sha256: str
    parent_path: str = ""
    network_sha256: str | None = None
    ancestors: tuple[str, ...] | None = None
    n_layers: int | None = None
    dropped: tuple[int, ...] | None = None
    model_digest: str | None = None
    recovered_from: str | None = None
    flavour: Literal["tensorrt", "tensorrt-rtx"]
    flavour_version: str
    precision: Precision
    prepared: PreparedGraph | None = None
    profiles: tuple[Profile, ...]
    n_network_layers: int
    n_inputs: int
    n_outputs: int
    weight_bytes: int | None = None
    gpu: str | None = None
    capabilities: tuple[str, ...] = ()
    build_seconds: float
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    built_on: str
    from_cache: bool = False
