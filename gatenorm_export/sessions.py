"""ONNX Runtime sessions, as everything that runs a graph opens them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gatenorm_export.errors import InputError
from gatenorm_export.processor import usable_threads


def cpu_options() -> Any:
    """Session options for the CPU: silent, and on no more threads than :func:`usable_threads`.

    ONNX Runtime takes one a core whatever it is told elsewhere, and threads without a core of their own wait for each
    other by spinning: on two cores that others use, a step of a tiny decoder took 28 ms in place of one.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    threads = usable_threads()
    if threads < (os.cpu_count() or 1):
        options.intra_op_num_threads = threads
    return options


def open_session(graph: Path, *, exact_int4: bool = False) -> Any:
    """An ONNX Runtime session on the CPU, from the file's path so that external data is found.

    ``exact_int4`` computes with 4-bit weights in the graph's own type. On its own ONNX Runtime fuses them into products
    that round what they read to 8 bits: of a decoder of 16 layers in int4 that moved outputs by 3 % of their range.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
    """
    import onnxruntime

    options = cpu_options()
    # Threads that still spin after a call take the cores from the next session's: when two sessions are timed in turn,
    # the first call after each change took up to 1.7 times as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if exact_int4:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{graph}: ONNX Runtime cannot load it ({first})") from error
