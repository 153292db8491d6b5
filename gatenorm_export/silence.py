"""Keep other people's chatter away: stdout belongs to results, and stderr to our own talk."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """While the block runs, drop warnings, log lines, and what is printed to stdout or stderr.

    Exceptions are no chatter: they pass. Progress bars that libraries draw on stderr by themselves are why stderr goes.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def silent_natives(descriptor: int = 1) -> Iterator[None]:
    """While the block runs, drop what native code writes to the process's standard output, or to error output (2).

    A failing trace of torch prints its whole graph there, past Python's own ``sys.stdout``; Ray a line for each try to
    connect, twenty in all.
    """
    (sys.stdout if descriptor == 1 else sys.stderr).flush()
    try:
        kept = os.dup(descriptor)
    except OSError:
        # Closed, as under some service managers: then nothing can be written there either.
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
            yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


@contextlib.contextmanager
def silent_polygraphy() -> Iterator[None]:
    """polygraphy talks on stdout; only what is critical is let through, to stderr."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), contextlib.redirect_stdout(sys.stderr):
        yield
