"""The output folder of a recovery: nothing of others is overwritten, and nothing unfinished stands in the way."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from gatenorm_export.artifacts import output_error
from gatenorm_export.errors import OutputError

MARK = ".gatenorm.recovering"
"""Lies in the folder while a recovery is unfinished: what it makes there is then ours to remove, also after a kill."""


@contextlib.contextmanager
def claimed(output: Path, *, folders: Sequence[str], files: Sequence[str], kept: Sequence[str] = ()) -> Iterator[None]:
    """Be the one that makes ``folders`` and ``files`` in ``output``; where the block fails, the folders go again.

    Except for what is ``kept``, folders and files: that stays for a next recovery, which knows whether it is of use. Of
    a recovery that ends, what is ``kept`` and not in ``folders`` goes.

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
    lost = [name for name in folders if name not in kept]
    _remove(output, lost)
    staying = False
    try:
        yield
    except BaseException:
        _remove(output, lost)
        staying = any((output / name).exists() for name in kept)
        raise
    else:
        _remove(output, [name for name in kept if name not in folders])
    finally:
        # Last: while it is there, all the rest may go.
        if not staying:
            mark.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):
                output.rmdir()


def _remove(output: Path, names: Sequence[str]) -> None:
    for name in names:
        path = output / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
