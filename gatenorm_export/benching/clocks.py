"""Clock rates, load, and the GPU's name and driver, read from /proc and nvidia-smi."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from gatenorm_export.records.bench import BenchDevice, Clocks

_IDLE = 1 / 4
"""A share of the threads that other work may take on a machine that counts as idle."""

_GPU_FIELDS = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
)


def read_clocks(*, gpu: int | None = None) -> Clocks:
    """The clocks now; with ``gpu``, that GPU's too, where nvidia-smi is there to tell."""
    found = _query(_GPU_FIELDS, gpu) if gpu is not None else [None] * len(_GPU_FIELDS)
    sm, top, memory, celsius, watts = (_number(text) for text in found)
    return Clocks(
        cpu_mhz=_cpu_mhz(),
        load_1min=_load(),
        gpu_sm_mhz=sm,
        gpu_sm_max_mhz=top,
        gpu_memory_mhz=memory,
        gpu_celsius=celsius,
        gpu_watts=watts,
    )


def device_clocks(device: BenchDevice) -> Clocks:
    """The clocks now of a machine, and of its GPU where that is what is measured."""
    return read_clocks(gpu=0 if device.driver is not None else None)


def gpu_driver(gpu: int = 0) -> str | None:
    """The version of NVIDIA's driver; None where nvidia-smi does not tell."""
    return _query(("driver_version",), gpu)[0]


def busy(clocks: Clocks, threads: int) -> str | None:
    """A sentence where other work took more than a quarter of the machine as measuring began."""
    load = clocks.load_1min
    if load is None or load <= _IDLE * threads:
        return None
    return (
        f"the machine was not idle: a load of {load:.1f} on {_threads(threads)} as measuring began; ratios hold, "
        "milliseconds do not"
    )


class OtherWork:
    """What other processes take of the processor from now on, by the kernel's count of its time and of this process's.

    The load of a minute does not tell it where this process itself was at work before.
    """

    def __init__(self) -> None:
        self._begin = time.monotonic(), _others_seconds()

    def busy(self, threads: int) -> str | None:
        """A sentence where that was more than a quarter of ``threads`` until now; None where nothing tells."""
        began, before = self._begin
        now, after = time.monotonic(), _others_seconds()
        if before is None or after is None or now <= began:
            return None
        load = (after - before) / (now - began)
        if load <= _IDLE * threads:
            return None
        return (
            f"the machine was not idle: other work took {load:.1f} threads while this one computed with "
            f"{_threads(threads)}; ratios hold within their intervals, milliseconds and rates do not"
        )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _others_seconds() -> float | None:
    """Processor seconds of all processes but this one since the machine was started."""
    try:
        # user, nice, system, idle, iowait, irq, softirq, steal
        ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    own = os.times()
    return (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def _query(fields: tuple[str, ...], gpu: int) -> list[str | None]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return [None] * len(fields)
    command = [program, f"--id={gpu}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return [None] * len(fields)
    values = [part.strip() for part in done.stdout.strip().splitlines()[0].split(",")] if done.stdout.strip() else []
    if done.returncode != 0 or len(values) != len(fields):
        return [None] * len(fields)
    return [value if value and not value.startswith("[") else None for value in values]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _cpu_mhz() -> float | None:
    """The mean over all cores, as the kernel tells it; a virtual machine tells its nominal rate."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    rates = [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")]
    return statistics.mean(rates) if rates else None


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
