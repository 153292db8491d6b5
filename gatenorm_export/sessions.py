"""ONNX Runtime sessions, as everything that runs a graph opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gatenorm_export.errors import InputError


def open_session(graph: Path) -> Any:
    """An ONNX Runtime session on the CPU, from the file's path so that external data is found.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Threads that still spin after a call take the cores from the next session's: when two sessions are timed in turn,
    # the first call after each change took up to 1.7 times as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{graph}: ONNX Runtime cannot load it ({first})") from error
