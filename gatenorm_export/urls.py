"""Which names are URLs, and what of them may be shown."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

SCHEMES: dict[str, dict[str, Any]] = {
    "http": {},
    "https": {},
    "s3": {},
    "gs": {},
    "gcs": {},
    # Reading ahead, its default, would fetch five megabytes for every eight bytes.
    "hf": {"cache_type": "none"},
}
"""Schemes that are read by range, and what their file system's ``cat_file`` must be told."""


def is_remote(name: str) -> bool:
    """Whether a name is a URL that is read by range."""
    return name.partition("://")[0].lower() in SCHEMES and "://" in name


def shown(place: str) -> str:
    """What may be printed and written of a place: a URL without user, password and query, anything else as it is."""
    if not is_remote(place):
        return place
    try:
        parts = urlsplit(place)
    except ValueError:
        return place.partition("?")[0]
    # Elsewhere than on the web an @ is part of the name: hf://model@revision.
    host = parts.netloc.rpartition("@")[2] if parts.scheme in {"http", "https"} else parts.netloc
    return f"{parts.scheme}://{host}{parts.path}"
