"""Run TensorRT's parser and builder in a process of their own, with progress, and say what went wrong in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import IO, Any

from gatenorm_export.building.job import BuildJob
from gatenorm_export.errors import OutputError, RefusedError
from gatenorm_export.progress import Task

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MARK = re.compile(r"^\s*(\[[^\]]*\]\s*)*\[(?:E|TRT|!)\]\s*(\[[^\]]*\]\s*)*")

_LONGEST = 400


def compile_engine(job: BuildJob, bar: Task) -> dict[str, Any]:
    """Write ``job.engine``; what was counted on the way (network layers, inputs, outputs, bytes, seconds, peak memory).

    An interruption (Ctrl-C, or any exception here) ends the process at once.

    Raises:
        RefusedError: TensorRT cannot parse or build the graph, or its process died.
        OutputError: the engine was built and cannot be written.
    """
    # -P keeps the current folder off the path; where the package itself lies is told by ours.
    command = [sys.executable, "-P", "-m", "gatenorm_export.building.compile_worker"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with tempfile.TemporaryFile() as talk:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=talk,
            env=environment,
            text=True,
            encoding="utf-8",
            # A Ctrl-C in a terminal goes to its whole group; only this side decides what to make of it.
            start_new_session=True,
        )
        try:
            found = _listen(process, job, bar)
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)
        if "refused" in found:
            raise RefusedError(f"{found['refused']}{_reason(talk, found['refused'])}")
        if "unwritten" in found:
            raise OutputError(f"{found['unwritten']}; make room, or choose another disk")
        if "result" not in found:
            raise RefusedError(_death(job, code, talk))
        result: dict[str, Any] = found["result"]
        return result


def _listen(process: subprocess.Popen[str], job: BuildJob, bar: Task) -> dict[str, Any]:
    """Send the job and read the messages; stdin stays open, since its end tells the process that we are gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job.model_dump_json() + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return {}
    done = 0
    for line in process.stdout:
        message = json.loads(line)
        if "steps" in message:
            bar.total(message["steps"])
            bar.advance(message["done"] - done)
            done = message["done"]
        if message.keys() & {"refused", "unwritten", "result"}:
            found: dict[str, Any] = message
            return found
    return {}


def _close(pipe: IO[str]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        # What was not read goes with the process.
        return


def _errors(talk: IO[bytes]) -> list[str]:
    """What TensorRT called an error, without time stamps and colours."""
    talk.seek(0)
    lines = (_COLOUR.sub("", line) for line in talk.read().decode(errors="replace").splitlines())
    return [" ".join(_MARK.sub("", line).split()) for line in lines if "[E]" in line]


def _reason(talk: IO[bytes], said: str) -> str:
    """The first error in the log, for a refusal that gives no reason of its own."""
    if "cannot build" not in said:
        return ""
    errors = [line for line in _errors(talk) if line and "Invalid Engine" not in line]
    return f": {errors[0][:_LONGEST]}" if errors else "; TensorRT gives no reason"


def _death(job: BuildJob, code: int, talk: IO[bytes]) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    # 9 is what the kernel sends when memory runs out.
    advice = "most likely for lack of memory; make room, or build with --precision fp16" if code == -9 else "report it"
    talk.seek(0)
    lines = talk.read().decode(errors="replace").strip().splitlines()
    last = f" ({_COLOUR.sub('', lines[-1]).strip()[:_LONGEST]})" if lines and code != -9 else ""
    return f"{job.graph}: TensorRT's builder {how}{last}; {advice}"
