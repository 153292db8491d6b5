"""The output folder of a recovery: nothing of others is overwritten, and nothing unfinished stands in the way."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from gatenorm_export.artifacts import output_error
from gatenorm_export.errors import OutputError

MARK = ".gatenorm.recovering"
"""Lies in the folder while a recovery is unfinished: what it names is then ours to remove, also after a kill."""


@contextlib.contextmanager
def claimed(output: Path, *, folders: Sequence[str], files: Sequence[str]) -> Iterator[None]:
    """Be the one that makes ``folders`` and ``files`` in ``output``; where the block fails, the folders go again.

    Raises:
        OutputError: one of them is there and is not what an unfinished recovery left, or nothing can be written.
    """
    mark, made = output / MARK, not output.exists()
    if not mark.exists():
        for name in (*folders, *files):
            if (output / name).exists():
                raise OutputError(
                    f"{output / name}: is there already and is not overwritten; choose another output folder"
                )
    try:
        output.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise output_error(output, error) from error
    _remove(output, folders)
    try:
        yield
    except BaseException:
        _remove(output, folders)
        raise
    finally:
        mark.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):
                output.rmdir()


def _remove(output: Path, folders: Sequence[str]) -> None:
    for name in folders:
        shutil.rmtree(output / name, ignore_errors=True)
