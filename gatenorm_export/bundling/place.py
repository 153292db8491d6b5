"""Whether a bundle may be written to a folder: a new one, an empty one, or an untouched bundle that it replaces."""

from __future__ import annotations

from pathlib import Path

from gatenorm_export.bundling.opening import read_manifest, touched_files
from gatenorm_export.errors import InputError, OutputError
from gatenorm_export.graphs import MANIFEST_NAME


def require_outside_bundles(place: Path) -> None:
    """Refuse to write where a bundle would be touched.

    Raises:
        OutputError: a folder around ``place`` is a bundle.
    """
    around = next((parent for parent in place.resolve().parents if _is_bundle(parent)), None)
    if around is not None:
        raise OutputError(f"{place}: lies in the bundle {around}, which it would touch; choose another output")


def check_place(folder: Path, source: Path) -> None:
    """Make sure that nothing is lost when ``folder`` is replaced, least of all what the bundle is made from.

    Raises:
        OutputError: it is a file, a link, a folder with something else than a bundle in it or lies in a bundle, or
            ``source`` lies in it.
    """
    if source.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{folder}: holds what is to be bundled; choose another output")
    require_outside_bundles(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder}: is a link or a file in the way of the bundle; choose another output")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        raise OutputError(
            f"{folder}: is not empty, and no bundle to replace ({error}); choose another output, or remove it"
        ) from error
    foreign = [finding for finding in touched_files(folder, manifest, digest=False) if finding.endswith("was added")]
    if foreign:
        raise OutputError(f"{folder}: {foreign[0]} to the bundle there, and would be lost; move it away first")


def _is_bundle(folder: Path) -> bool:
    if not (folder / MANIFEST_NAME).is_file():
        return False
    try:
        read_manifest(folder)
    except InputError:
        # Another manifest: a run's, or a graph's.
        return False
    return True
