"""Keep other people's chatter away: stdout belongs to results, and stderr to our own talk."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator


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
def silent_polygraphy() -> Iterator[None]:
    """polygraphy talks on stdout; only what is critical is let through, to stderr."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), contextlib.redirect_stdout(sys.stderr):
        yield
