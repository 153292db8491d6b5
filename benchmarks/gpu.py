"""Pruned against unpruned at full size: the one command for a machine with a GPU.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --shape smollm2 --device cpu
    python -m benchmarks.gpu --shape tiny --device cpu --out /tmp/tiny

The first measures LLaMA-13B's shape (40 layers of width 5120, random weights made on the device, fp16) without 0, 1, 4,
8, 12 and 16 of its attention sublayers, at 512 to 4096 tokens: in torch and, where they are installed, TensorRT,
TensorRT-RTX and ONNX Runtime's CUDA provider. The second is the same suite on the real SmolLM2 and on the CPU, from
whose results the README's table is made. 0 removed is the model against itself: it shows what measuring alone does.

Writes ``bench-SHAPE-DEVICE.json`` and one picture a backend beside it, after every step, so that what was measured
before a failure is kept. A backend that is not there, or does not fit, is named with its reason.

Goals, at 16 of 40 removed: 1.30 times as fast in prefill or decode, all lengths together; bytes of the KV cache exactly
(L - N) / L; and at least 0.95 of the speed-up that the roofline predicts, in every row. A goal is held or missed where
whole intervals show it, and not decided otherwise. The exit status is 1 when a goal of the full shape was missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_chart import bench_svg
from benchmarks.bench_tables import Cell, goals_of, markdown
from benchmarks.gpu_pairs import BACKENDS, open_pairs
from benchmarks.gpu_shapes import SHAPES, Shape, ShapeModels
from gatenorm_export.artifacts import write_text
from gatenorm_export.benching import BenchRequest, run_bench
from gatenorm_export.errors import GateNormError
from gatenorm_export.progress import OnStderr, Progress
from gatenorm_export.records import tool_versions

RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    """Measure, write, print the table and the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-13b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--backend", nargs="+", choices=sorted({b for row in BACKENDS.values() for b in row}))
    parser.add_argument("--drop", type=int, nargs="+", help="numbers of removed layers (default: the shape's)")
    parser.add_argument("--sequence", type=int, nargs="+", help="lengths in tokens (default: the shape's)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--repeats", type=int, help="pairs of calls at each point, a multiple of 8 (default: what fits)"
    )
    parser.add_argument("--max-minutes", type=float, help="of timing, all together (default: the shape's)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    parser.add_argument("--work", type=Path, help="keep graphs and engines here (default: a temporary folder)")
    parser.add_argument("--results", type=Path, help="read this results file and measure nothing")
    parser.add_argument("--markdown", action="store_true", help="print nothing but the README's table")
    args = parser.parse_args(argv)
    if args.results is not None:
        cells, _ = load_results(args.results)
        sys.stdout.write(markdown(cells))
        return 0
    shape = SHAPES[args.shape]
    command = " ".join(["python -m benchmarks.gpu", *(argv if argv is not None else sys.argv[1:])])
    backends = args.backend or BACKENDS[args.device]
    with tempfile.TemporaryDirectory(prefix="gatenorm-bench-") as temporary:
        request = BenchRequest(
            batches=tuple(args.batch),
            sequences=tuple(args.sequence or shape.sequences),
            repeats=args.repeats,
            max_minutes=args.max_minutes or shape.minutes,
            command=command,
        )
        models = ShapeModels(shape, args.work or Path(temporary), OnStderr())
        beyond = layers_beyond(models, args.drop or ())
        if beyond is not None:
            parser.error(beyond)
        cells = measure(models, args.device, backends, args.drop or shape.drops, request, args.out, OnStderr())
    sys.stdout.write(markdown(cells))
    if all(cell.report is None for cell in cells):
        sys.stderr.write("nothing could be measured; no results were written\n")
        return 1
    if args.markdown:
        return 0
    missed = False
    for goal in goals_of(cells):
        sys.stdout.write(f"{goal.sentence}\n")
        missed = missed or goal.held is False
    return 1 if missed and shape.name == "llama-13b" else 0


def layers_beyond(models: ShapeModels, drops: Sequence[int]) -> str | None:
    """Which number of removed layers the model does not have, in words."""
    try:
        wrong = [drop for drop in drops if not 0 <= drop <= models.n_layers]
    except GateNormError:
        # A checkpoint that is not there: measuring names the reason for each backend.
        return None
    if not wrong:
        return None
    return (
        f"--drop {wrong[0]}: {models.shape.name} has {models.n_layers} attention sublayers; give 0 to {models.n_layers}"
    )


def measure(
    models: ShapeModels,
    device: str,
    backends: Sequence[str],
    drops: Sequence[int],
    request: BenchRequest,
    out: Path,
    progress: Progress,
) -> list[Cell]:
    """One bench for each backend and number of removed layers; results are written after every one."""
    import dataclasses

    cells: list[Cell] = []
    # Each backend that is missing leaves its minutes to nobody: the limit is an upper one.
    each = dataclasses.replace(request, max_minutes=request.max_minutes / (len(backends) * len(drops)))
    for name in backends:
        try:
            opened = open_pairs(name, device, models, drops, request, progress)
        except GateNormError as error:
            cells.append(Cell(name, None, None, str(error)))
            progress.say(f"{name}: {error}")
            continue
        for drop in drops:
            try:
                backend, pair = opened(drop)
                report = run_bench(backend, pair, each, progress=progress)
                cells.append(Cell(name, drop, report, None))
                progress.say(f"{name}, {drop} removed: {report.verdict}")
            except GateNormError as error:
                cells.append(Cell(name, drop, None, str(error)))
                progress.say(f"{name}, {drop} removed: {error}")
            save(cells, models.shape, device, request.command, out)
    save(cells, models.shape, device, request.command, out)
    return cells


def save(cells: Sequence[Cell], shape: Shape, device: str, command: str, out: Path) -> None:
    """Raw results as JSON, and a picture of each backend that has any."""
    if all(cell.report is None for cell in cells):
        # Earlier results would be lost for nothing.
        return
    stem = f"bench-{shape.name}-{device}"
    result: dict[str, Any] = {
        "schema": 1,
        "kind": "bench-suite",
        "shape": shape.name,
        "command": command,
        "versions": tool_versions(),
        "goals": [goal.to_object() for goal in goals_of(cells)],
        "cells": [cell.to_object() for cell in cells],
    }
    write_text(out / f"{stem}.json", json.dumps(result, indent=1) + "\n")
    for name in dict.fromkeys(cell.backend for cell in cells if cell.report is not None):
        found = [cell for cell in cells if cell.backend == name and cell.report is not None]
        write_text(out / f"{stem}-{name}.svg", bench_svg(found, f"{shape.name}, {name}"))


def load_results(path: Path) -> tuple[list[Cell], dict[str, Any]]:
    """Cells of a results file, and the file."""
    result = json.loads(path.read_text(encoding="utf-8"))
    return [Cell.of(entry) for entry in result["cells"]], result


if __name__ == "__main__":
    sys.exit(main())
