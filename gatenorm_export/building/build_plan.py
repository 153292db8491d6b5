"""One build as it is settled before it starts: of what, for what, and everything that decides the engine."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from gatenorm_export import __version__
from gatenorm_export.artifacts import sha256_of
from gatenorm_export.building.build_cache import BuildCache, cache_key
from gatenorm_export.building.flavours import Flavour
from gatenorm_export.building.gpus import Gpu
from gatenorm_export.building.graph_inputs import TOKENS
from gatenorm_export.building.job import BuildJob
from gatenorm_export.building.network import Network
from gatenorm_export.building.opening import PORTABLE
from gatenorm_export.building.profile_files import Overrides
from gatenorm_export.building.resources import check_disk, check_memory
from gatenorm_export.records import EngineArtifact, Precision, PreparedGraph, Profile

_HALF: frozenset[Precision] = frozenset({"fp16", "bf16"})


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """What a build may be told beside its shapes.

    ``precision`` None is the graph's own. ``capabilities`` are the compute capabilities that TensorRT-RTX builds for;
    none: all that it supports. ``measured`` says whether the error of a conversion is measured.
    """

    precision: Precision | None = None
    overrides: Overrides = dataclasses.field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    cache: BuildCache | None = None
    despite_memory: bool = False
    measured: bool = True

    def decides(self) -> dict[str, Any]:
        """Everything here that decides the engine, in JSON types."""
        return {
            "precision": self.precision,
            "profile": {profile: dict(inputs) for profile, inputs in self.overrides.items()},
            "capabilities": self.capabilities,
        }


@dataclasses.dataclass(frozen=True)
class BuildPlan:
    """``gpu`` is the one of this machine, None without one; ``precision`` the one that the network gets."""

    graph: Path
    engine: Path
    flavour: Flavour
    gpu: Gpu | None
    options: BuildOptions
    profiles: tuple[Profile, ...]
    network: Network
    precision: Precision

    @property
    def key(self) -> str:
        """Where the build cache keeps the engine."""
        return cache_key(
            {
                "gatenorm": __version__,
                "network": self.network.network_sha256,
                "flavour": self.flavour.name,
                "version": self.flavour.version,
                "gpu": str(self.gpu) if self.gpu is not None else "none",
                "capabilities": self.options.capabilities,
                "profiles": [profile.model_dump(mode="json") for profile in self.profiles],
                "precision": self.precision,
                "measured": self.options.measured,
            }
        )

    def check_resources(self) -> None:
        """Refuse a build that memory or disk do not hold.

        Raises:
            RefusedError: memory most likely does not suffice.
            OutputError: the disk has no room for the engine.
        """
        network, halved = self.network, self.precision in _HALF
        weights = network.weight_bytes - (network.float32_bytes // 2 if halved else 0)
        shared = _shared(self.profiles)
        # A key and a value a sublayer, as a rule.
        caches = sum(len(bound.min) > 2 for bound in self.profiles[0].bounds)
        check_disk(self.engine.parent, weights, (caches + 1) // 2, shared=shared)
        if not self.options.despite_memory:
            halved = halved or network.float32_bytes == 0
            check_memory(self.graph, weights, network.n_nodes, shared=shared, halved=halved)

    def job(self, prepared: Path) -> BuildJob:
        """What the compiling process is asked for, of the graph as it was prepared; where to is still open."""
        return BuildJob(
            graph=str(prepared.resolve()),
            engine="",
            flavour=self.flavour.name,
            version=self.flavour.version,
            profiles=self.profiles,
            compute_capabilities=self.options.capabilities,
            timing_cache=self._timings(),
        )

    def origin(self) -> dict[str, Any]:
        """The fields of a record that come from the graph as it lies there, not from the build."""
        network = self.network
        return {
            "engine": self.engine.name,
            "parent_sha256": network.sha256,
            "parent_path": str(self.graph.resolve()),
            "network_sha256": network.network_sha256,
            "ancestors": network.ancestors,
            "n_layers": network.n_layers,
            "dropped": network.dropped,
            "model_digest": network.model_digest,
            "recovered_from": network.recovered_from,
        }

    def record(self, prepared: PreparedGraph, facts: dict[str, Any], seconds: float) -> EngineArtifact:
        """The record of the engine, which lies at its place; ``facts`` are what the compiling process counted."""
        return EngineArtifact(
            **self.origin(),
            sha256=sha256_of(self.engine),
            bytes=self.engine.stat().st_size,
            flavour=self.flavour.name,
            flavour_version=self.flavour.version,
            precision=self.precision,
            prepared=prepared if prepared.changed else None,
            profiles=self.profiles,
            n_network_layers=facts["n_network_layers"],
            n_inputs=facts["n_inputs"],
            n_outputs=facts["n_outputs"],
            weight_bytes=facts["constant_bytes"],
            gpu=str(self.gpu) if self.gpu is not None else None,
            capabilities=self._runs_on(),
            build_seconds=seconds,
            compile_seconds=facts["compile_seconds"],
            peak_bytes=facts["peak_bytes"],
            built_on=str(self.gpu) if self.gpu is not None else "a machine without a GPU",
        )

    def _runs_on(self) -> tuple[str, ...]:
        if self.flavour.name == "tensorrt-rtx":
            return self.options.capabilities or PORTABLE
        return (self.gpu.capability,) if self.gpu is not None else ()

    def _timings(self) -> str | None:
        """Data-centre TensorRT times kernels on the GPU as it builds; TensorRT-RTX chooses them when it runs."""
        if self.options.cache is None or self.flavour.name != "tensorrt":
            return None
        where = re.sub(r"[^A-Za-z0-9.]+", "-", str(self.gpu) if self.gpu is not None else "none").strip("-")
        return str(self.options.cache.timing_file(f"{self.flavour.name}-{self.flavour.version}-{where}"))


def _shared(profiles: tuple[Profile, ...]) -> bool:
    """Whether every profile fixes the step to one token, or none does; see ``shapes.SHARED_STEP``."""
    steps = [bound.max[1:] == (1,) for profile in profiles for bound in profile.bounds if bound.input == TOKENS]
    return len(set(steps)) < 2
