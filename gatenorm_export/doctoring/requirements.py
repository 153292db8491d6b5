"""The packages that an extra brings, read from gatenorm's own metadata, and whether what is installed fits them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata

from packaging.requirements import Requirement

from gatenorm_export.errors import MissingPartError

# Distributions that bring the same module: what is asked of the first is asked of whichever is there.
_SAME_MODULE = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "lm-eval": ("lm_eval",),
}

# Modules that are named otherwise than what brings them.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "optimum": "optimum-onnx",
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
}


@dataclasses.dataclass(frozen=True)
class Package:
    """A package that is wanted, and what is wrong with the installed one; ``version`` None: it is not there."""

    name: str
    wanted: str
    version: str | None
    fits: bool

    @property
    def problem(self) -> str | None:
        """What is wrong, in a sentence; None where nothing is."""
        if self.version is None:
            return f"{self.name} is not installed"
        return None if self.fits else f"{self.name} {self.version} does not fit, {self.wanted} is needed"


@functools.cache
def packages_of(extra: str) -> tuple[Package, ...]:
    """The packages that ``gatenorm[extra]`` brings, also by way of other extras; those of gatenorm alone for "".

    Raises:
        MissingPartError: gatenorm runs from a folder and was not installed, so nobody knows.
    """
    try:
        declared = importlib.metadata.requires("gatenorm") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPartError(
            "gatenorm runs from its source without being installed: pip install -e . in its folder"
        ) from error
    found: dict[str, Package] = {}
    for requirement in map(Requirement, declared):
        named = requirement.marker is not None and "extra" in str(requirement.marker)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not applies or named != bool(extra):
            continue
        if requirement.name == "gatenorm":
            found |= {package.name: package for other in requirement.extras for package in packages_of(other)}
        else:
            found[requirement.name] = _package(requirement)
    return tuple(found.values())


@functools.cache
def modules_of(extra: str) -> frozenset[str]:
    """What ``gatenorm[extra]`` brings, by the first of the packages that bring the same module.

    Raises:
        MissingPartError: see :func:`packages_of`.
    """
    first = {other: name for name, others in _SAME_MODULE.items() for other in others}
    return frozenset(first.get(package.name, package.name) for package in packages_of(extra))


def extra_of(module: str) -> str | None:
    """The first extra that brings a module; None where none does."""
    wanted = _DISTRIBUTIONS.get(module, module.replace("_", "-"))
    extras = importlib.metadata.metadata("gatenorm").get_all("Provides-Extra") or []
    return next((extra for extra in extras if any(package.name == wanted for package in packages_of(extra))), None)


def _package(requirement: Requirement) -> Package:
    version = None
    for name in (requirement.name, *_SAME_MODULE.get(requirement.name, ())):
        try:
            version = importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    fits = version is not None and requirement.specifier.contains(version, prereleases=True)
    return Package(requirement.name, f"{requirement.name}{requirement.specifier}", version, fits)
