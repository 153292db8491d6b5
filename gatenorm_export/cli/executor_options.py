"""``--executor`` and ``--ray-resources``: where the parts of a verb's work are done."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gatenorm_export.progress import Progress

if TYPE_CHECKING:
    from gatenorm_export.executing import Executor, Resources


def add_executor(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("where it is done")
    group.add_argument(
        "--executor",
        default="local",
        metavar="NAME",
        help="local: one after the other in this process; ray: on the Ray cluster that RAY_ADDRESS names, or else on "
        "one of this machine's processors; ray://HOST:PORT: on that one (default: local)",
    )
    group.add_argument(
        "--ray-resources",
        metavar="LIST",
        help="what each task occupies, such as cpus=4,gpus=1,accelerator=H100,memory=16 (GiB); other names are the "
        "cluster's own (default: cpus=1)",
    )


@contextlib.contextmanager
def executor_of(args: argparse.Namespace, folder: Path, progress: Progress) -> Iterator[Executor]:
    """The executor that the options name, its artifacts in ``folder``, until the block ends.

    Raises:
        UsageError: there is no such executor; resources cannot be read, or are for local.
        InputError: no cluster answers.
        MissingPartError: ray is not installed.
    """
    from gatenorm_export.executing import open_executor

    with open_executor(args.executor, folder, resources=resources_of(args), progress=progress) as executor:
        yield executor


def check_executor_options(args: argparse.Namespace) -> None:
    """Find what is wrong with the options before any work.

    Raises:
        UsageError: see :func:`executor_of`.
    """
    from gatenorm_export.executing import check_executor

    check_executor(args.executor, resources_of(args))


def resources_of(args: argparse.Namespace) -> Resources | None:
    """What ``--ray-resources`` says."""
    from gatenorm_export.executing import parse_resources

    return parse_resources(args.ray_resources) if args.ray_resources is not None else None
