"""How far scoring and pruning are from what they cannot beat: reading the checkpoint, and copying the graph.

    python -m benchmarks.stages smollm2 out/base/model.onnx --layers 19,27,28,29

Prints one JSON object: seconds of each run, median ratios over the baseline, peak memory, versions and device.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gatenorm_export.planning import parse_layers
from gatenorm_export.processor import device_name
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import ModelSpec, tool_versions
from gatenorm_export.scoring import score_model
from gatenorm_export.sources import resolve_model


def main() -> None:
    """Measure in turns, baseline and ours, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("graph", type=Path)
    parser.add_argument("--layers", type=parse_layers, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    spec = resolve_model(args.model)
    with tempfile.TemporaryDirectory(prefix="gatenorm-bench-") as name:
        folder = Path(name)
        score = _ratio(lambda: _read(spec), lambda: score_model(spec), args.repeats)
        prune = _ratio(
            lambda: shutil.copyfile(args.graph, folder / "copy.onnx"),
            lambda: prune_graph(args.graph, folder / "pruned.onnx", layers=args.layers),
            args.repeats,
        )
    result = {
        "schema": 1,
        "kind": "stage-benchmark",
        "device": device_name(),
        "versions": tool_versions(),
        "score_over_reading_the_checkpoint": score,
        "prune_over_copying_the_graph": prune,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(result, indent=2))


def _read(spec: ModelSpec) -> None:
    folder = Path(spec.path) if Path(spec.path).is_dir() else Path(spec.path).parent
    for file in spec.files:
        (folder / file.name).read_bytes()


def _ratio(baseline: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict[str, object]:
    """Run both in turns after one warm-up each; the ratio is the median of the pairs."""
    seconds: dict[str, list[float]] = {"baseline_seconds": [], "seconds": []}
    for repeat in range(repeats + 1):
        for key, run in (("baseline_seconds", baseline), ("seconds", ours)):
            start = time.perf_counter()
            run()
            if repeat:
                seconds[key].append(time.perf_counter() - start)
    pairs = zip(seconds["seconds"], seconds["baseline_seconds"], strict=True)
    return {**seconds, "ratio": statistics.median(ours_s / base_s for ours_s, base_s in pairs)}


if __name__ == "__main__":
    main()
