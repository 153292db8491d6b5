"""``-o/--out`` and ``--wait``: what a verb writes, and the locks that keep others away from it meanwhile."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gatenorm_export.cli.values import number
from gatenorm_export.locking import file_lock, folder_lock, sole_writer

Locks = Callable[[argparse.Namespace], tuple[Path, ...]]


def add_out(parser: argparse.ArgumentParser, what: str, *, required: bool = False, locks: Locks | None = None) -> None:
    """``-o/--out``, described by ``what``, and ``--wait``.

    ``locks`` tells the lock files of what the options make the verb write; without it, ``--out`` is a folder, or a file
    where it ends in .json or .onnx.
    """
    parser.add_argument("-o", "--out", type=Path, required=required, help=what)
    parser.add_argument(
        "--wait",
        type=number(0),
        default=0.0,
        metavar="SECONDS",
        help="how long to wait where another gatenorm is writing the same output (default: 0, exit code 14 at once)",
    )
    parser.set_defaults(locks=locks or _of_file_or_folder)


def folders(*within: str) -> Locks:
    """The locks of a verb whose ``--out`` is a folder, and which also writes these folders in it."""

    def locks(args: argparse.Namespace) -> tuple[Path, ...]:
        return tuple(folder_lock(args.out / name) for name in ("", *within))

    return locks


def replaced(args: argparse.Namespace) -> tuple[Path, ...]:
    """The lock of a verb that puts a new file or folder in the place of ``--out``."""
    return (file_lock(args.out),)


@contextlib.contextmanager
def outputs_held(args: argparse.Namespace) -> Iterator[None]:
    """Be the only one that writes what the verb writes, until the block ends.

    Raises:
        BusyError: another process is writing it, and did so to the end of ``--wait``.
        OutputError: it cannot be written.
    """
    locks: Locks | None = getattr(args, "locks", None)
    with sole_writer(locks(args) if locks else (), command=args.command, wait_seconds=getattr(args, "wait", 0.0)):
        yield


def _of_file_or_folder(args: argparse.Namespace) -> tuple[Path, ...]:
    if args.out is None:
        return ()
    is_file = args.out.suffix in {".json", ".onnx"}
    return (file_lock(args.out) if is_file else folder_lock(args.out),)
