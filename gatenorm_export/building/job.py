"""What the compiling process is asked for."""

from __future__ import annotations

from gatenorm_export.building.flavours import FlavourName
from gatenorm_export.records import Profile
from gatenorm_export.records.base import Part


class BuildJob(Part):
    """One network to parse and build. Paths are absolute."""

    graph: str
    engine: str
    flavour: FlavourName
    version: str
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: str | None = None
