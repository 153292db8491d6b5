"""The machine and the folders that gatenorm writes to."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from gatenorm_export.benching.clocks import gpu_driver
from gatenorm_export.building.build_cache import default_cache
from gatenorm_export.building.gpus import find_gpu
from gatenorm_export.memory import free_memory, kernel_bytes
from gatenorm_export.processor import cores, device_name
from gatenorm_export.records.doctor import MachineFacts, PartFinding, PlaceFinding


def machine_facts() -> MachineFacts:
    """This machine."""
    return MachineFacts(
        python=platform.python_version(),
        executable=sys.executable,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=device_name(),
        n_cpus=cores(),
        memory_bytes=kernel_bytes(Path("/proc/meminfo"), "MemTotal:"),
        free_memory_bytes=free_memory(),
    )


def gpu_part() -> PartFinding:
    """The GPU that engines are built for and run on."""
    gpu, driver = find_gpu(), gpu_driver()
    if gpu is None:
        shown = f"driver {driver} shows none" if driver else "no NVIDIA driver shows one"
        remedy = "a machine with an NVIDIA GPU and its driver; in a container, docker run --gpus all"
        return PartFinding(name="gpu", kind="device", state="missing", version=driver, detail=shown, remedy=remedy)
    return PartFinding(name="gpu", kind="device", state="ready", version=driver, detail=str(gpu))


def places() -> tuple[PlaceFinding, ...]:
    """Caches, the folder for temporary files, and the one that this runs in."""
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
    return tuple(
        _place(name, Path(path).expanduser())
        for name, path in (
            ("current folder", Path.cwd()),
            ("gatenorm's cache", default_cache().folder.parent),
            ("hub cache", hub),
            ("temporary files", tempfile.gettempdir()),
        )
    )


def _place(name: str, path: Path) -> PlaceFinding:
    """A folder that may not be there yet: then the one that it would be made in is tried."""
    there = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), path)
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = True
        free = shutil.disk_usage(there).free
    except OSError:
        return PlaceFinding(name=name, path=str(path), writable=False, free_bytes=None)
    return PlaceFinding(name=name, path=str(path), writable=writable, free_bytes=free)
