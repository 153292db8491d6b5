"""Every extra that a command lacks, from the one that it met first: one message, and not one extra after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gatenorm_export.doctoring.requirements import Package, modules_of, packages_of
from gatenorm_export.doctoring.stages import STAGES, Stage
from gatenorm_export.errors import MissingPartError


def extras_lacking(verb: str, options: Mapping[str, Any], first: str) -> tuple[str, ...]:
    """What ``pip install`` must bring for a verb with these options which stopped for want of the extra ``first``."""
    try:
        stage = _stage(verb, options, first)
        if stage is None:
            return (first,)
        lacking = [extra for extra in stage.extras if any(map(_lacks, packages_of(extra)))]
        named = {package.name for extra in lacking for package in packages_of(extra)}
        if {package.name for package in packages_of(first)} <= named:
            return tuple(lacking)
        # Such as ort-gpu, which brings the modules of ort.
        return (first, *(extra for extra in lacking if not modules_of(extra) <= modules_of(first)))
    except MissingPartError:
        # gatenorm runs from its source, and nothing tells what an extra brings.
        return (first,)


def _lacks(package: Package) -> bool:
    return not package.fits


def _brought(extras: Iterable[str]) -> frozenset[str]:
    return frozenset[str]().union(*map(modules_of, extras))


def _stage(verb: str, options: Mapping[str, Any], extra: str) -> Stage | None:
    """The stage that needs the extra, of several the one that needs least; None where none does."""
    stages = [stage for stage in STAGES if stage.verb == verb and asked_for(stage, options) is not False]
    chosen = [stage for stage in stages if asked_for(stage, options)]
    for pool in (chosen, stages):
        named = [stage for stage in pool if extra in stage.extras]
        # Or by way of others: ort brings onnx.
        implied = [stage for stage in pool if modules_of(extra) <= _brought(stage.extras)]
        found = min(named or implied, key=lambda stage: len(stage.extras), default=None)
        if found is not None:
            return found
    return None


def asked_for(stage: Stage, options: Mapping[str, Any]) -> bool | None:
    """Whether the options ask for this stage of their verb; None where they do not tell."""
    if stage.option is None:
        return None
    name, value = stage.option
    given = options.get(name)
    if not value:
        return given not in (None, False, "", "none")
    return None if given is None else str(given).partition(":")[0] == value
