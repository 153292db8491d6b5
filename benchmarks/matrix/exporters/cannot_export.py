"""The one error of the exporters that have their reasons."""

from __future__ import annotations


class CannotExport(ValueError):
    """The exporter has no way to take this model; the message says why, in one line."""
