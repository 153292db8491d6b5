"""What pruning a large model costs: time and peak memory of both kinds of weights, against a plain copy of the bytes.

    python -m benchmarks.large --gib 24.3 --real-gib 2

A decoder of LLaMA-13B's shape (24.3 GiB are its 40 layers in half precision) is pruned by ``gatenorm prune`` twice,
sharing and compacting, and the bytes that compacting keeps are copied plainly; all three in processes of their own, in
turns, on the same disk. First with a sparse file: its data are a hole, and ``compact`` and the plain copy both leave it
one, so this shows the costs that grow with the model and not with its bytes, and peak memory. Then with a smaller file
of real bytes, where the ratio means something; a ``sync`` between the runs, none within them. Compact's seconds are
those of the command, interpreter and imports included; ``ratio_beyond_share`` takes away what ``share`` also does.

Prints one JSON object. Needs three times ``--real-gib`` of disk, and removes what it made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DATA_NAME = "model.onnx.data"
# Every sixth layer, about what the method removes from LLaMA-13B.
_EVERY = 6
# sendfile, as shutil.copyfile uses it, and of a hole no more than `cp` would read. The bytes go to where compact has
# put them: how a kernel lays out a file in memory, and what that costs, depends on where its parts begin.
_PLAIN_COPY = """
import os, sys
source, target, *numbers = sys.argv[1:]
numbers = list(map(int, numbers))
with open(source, "rb") as reader, open(target, "wb") as writer:
    for offset, length, place in zip(numbers[::3], numbers[1::3], numbers[2::3]):
        stop, shift = offset + length, place - offset
        while offset < stop:
            try:
                offset = min(os.lseek(reader.fileno(), offset, os.SEEK_DATA), stop)
                hole = min(os.lseek(reader.fileno(), offset, os.SEEK_HOLE), stop)
            except OSError:
                break
            os.lseek(writer.fileno(), offset + shift, os.SEEK_SET)
            while offset < hole:
                offset += os.sendfile(writer.fileno(), reader.fileno(), offset, hole - offset)
        writer.truncate(place + length)
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=24.3, help="size of the sparse model (default: 24.3)")
    parser.add_argument("--real-gib", type=float, default=2.0, help="size of the model of real bytes (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, in turns (default: 5)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    args = parser.parse_args()
    needed, free = 3 * args.real_gib * 2**30, shutil.disk_usage(args.folder or tempfile.gettempdir()).free
    if free < needed + 2**30:
        parser.error(f"{needed / 1e9:.1f} GB of disk are needed and 1 GB to spare, {free / 1e9:.1f} GB are free")
    with tempfile.TemporaryDirectory(prefix="gatenorm-bench-", dir=args.folder) as name:
        sparse = _measure(Path(name) / "sparse", args.gib, args.repeats, real=False)
        real = _measure(Path(name) / "real", args.real_gib, args.repeats, real=True) if args.real_gib else None
    # Imported last: see benchmarks.large_decoder.main.
    from gatenorm_export.processor import device_name
    from gatenorm_export.records import tool_versions

    result = {
        "schema": 1,
        "kind": "large-benchmark",
        "device": device_name(),
        "versions": tool_versions(),
        "sparse": sparse,
        "real": real,
    }
    print(json.dumps(result, indent=2))


def _measure(folder: Path, gib: float, repeats: int, *, real: bool) -> dict[str, Any]:
    graph = folder / "source" / "model.onnx"
    n_layers = _ask("make", str(graph.parent), str(gib * 2**30), *(["--real"] if real else []))
    layers = ",".join(str(layer) for layer in range(_EVERY - 1, n_layers, _EVERY))
    # From the folder of this repository, so that an installed gatenorm is not measured by mistake.
    prune = [sys.executable, "-m", "gatenorm_export.cli.main", "prune", str(graph), "--layers", layers, "--quiet"]
    shared, compact = graph.with_name("shared.onnx"), folder / "compact"
    _run([*prune, "--weights", "compact", "-o", str(compact)])
    ranges = [str(number) for part in _ask("ranges", str(graph), str(compact / "model.onnx")) for number in part]
    copy, source = folder / "copy", graph.with_name(_DATA_NAME)
    # A virtual machine hands freed memory back to its host after a second or two, and pays to get it again: seconds of
    # system time for 2 GB. In this order both copies start as long after the other's file was removed: compact reads
    # the graph first, and the plain copy comes after share, which does the same.
    commands = {
        "compact": [*prune, "--weights", "compact", "-o", str(compact)],
        "share": [*prune, "--weights", "share", "-o", str(shared)],
        "plain_copy": [sys.executable, "-c", _PLAIN_COPY, str(source), str(copy), *ranges],
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    files = {"compact": compact / _DATA_NAME, "plain_copy": copy}
    sizes: dict[str, int] = {}
    for _ in range(repeats):
        for name in commands:
            os.sync()
            runs[name].append(_run(commands[name]))
            if name in files:
                status = files[name].stat()
                sizes |= {f"{name}_bytes": status.st_size, f"{name}_allocated_bytes": 512 * status.st_blocks}
                files[name].unlink()
    result: dict[str, Any] = {
        "model_bytes": source.stat().st_size,
        "model_allocated_bytes": 512 * source.stat().st_blocks,
        "n_layers": n_layers,
        "removed_layers": layers,
        **sizes,
        "runs": runs,
    }
    medians = {name: statistics.median(run["seconds"] for run in done) for name, done in runs.items()}
    result["median_seconds"] = medians
    best = {name: min(run["seconds"] for run in done) for name, done in runs.items()}
    result["best_seconds"] = best
    result["peak_rss_bytes"] = {name: max(run["peak_rss_bytes"] for run in done) for name, done in runs.items()}
    if real:
        result["ratio"] = medians["compact"] / medians["plain_copy"]
        result["ratio_beyond_share"] = (medians["compact"] - medians["share"]) / medians["plain_copy"]
        result["best_ratio_beyond_share"] = (best["compact"] - best["share"]) / best["plain_copy"]
    shutil.rmtree(folder)
    return result


def _ask(*arguments: str) -> Any:
    """What ``benchmarks.large_decoder`` prints, run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.large_decoder", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _run(command: Sequence[str]) -> dict[str, float]:
    """Run a command to its end; seconds of the clock and of the processor, and its peak resident memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"failed with status {status}: {' '.join(command[:8])} ...")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": 1024 * usage.ru_maxrss,
    }


if __name__ == "__main__":
    main()
