"""The control: a pruned graph beside one that was exported natively without those layers.

    python -m benchmarks.control smollm2 --drop 4 --json benchmarks/results/control.json

Exports the model twice, whole and as one that never had the attention of the N lowest Gate-Norm scores; prunes the
first; holds the pruned graph against the native one in structure, in what it computes, and in time, in turns on ONNX
Runtime's CPU provider. The exit status is 0 when they are equal in structure and in numbers, and in time within 2 % by
the whole interval; 1 when they differ, and when it is not decided whether they do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.native import export_native
from gatenorm_export.artifacts import write_text
from gatenorm_export.benching import BenchRequest, open_backend
from gatenorm_export.benching.bench import bench_points, run_control
from gatenorm_export.benching.clocks import read_clocks
from gatenorm_export.benching.measuring import Effort
from gatenorm_export.exporting import export_model
from gatenorm_export.planning import DropRequest, rank_layers
from gatenorm_export.progress import OnStderr, Progress
from gatenorm_export.pruning import prune_graph
from gatenorm_export.records import tool_versions
from gatenorm_export.scoring import score_model
from gatenorm_export.sources import resolve_model

_TOLERANCE = 1e-5
"""Largest difference of two logits as a share of their range: the same operations, in another order where fused."""


def main(argv: list[str] | None = None) -> int:
    """Make the graphs, measure, print a sentence, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--drop", type=int, default=4)
    parser.add_argument("--sequence", type=int, nargs="+", default=[64, 256])
    parser.add_argument(
        "--repeats", type=int, help="pairs of calls at each point, a multiple of 8 (default: what fits)"
    )
    parser.add_argument("--max-minutes", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    command = " ".join(["python -m benchmarks.control", *(argv if argv is not None else sys.argv[1:])])
    request = BenchRequest(
        sequences=tuple(args.sequence), repeats=args.repeats, max_minutes=args.max_minutes, command=command
    )
    with tempfile.TemporaryDirectory(prefix="gatenorm-bench-") as folder:
        result = measure(args.model, args.drop, request, Path(folder), progress=OnStderr())
    if args.json is not None:
        write_text(args.json, json.dumps(result, indent=1) + "\n")
    sys.stdout.write(f"{result['sentence']}\n")
    return 0 if result["passed"] else 1


def measure(name: str, drop: int, request: BenchRequest, folder: Path, *, progress: Progress) -> dict[str, Any]:
    """Everything in ``folder``; the result as JSON types."""
    spec = resolve_model(name, progress=progress)
    layers = rank_layers(score_model(spec, progress=progress), DropRequest(drop=drop)).layers[:drop]
    base, pruned = folder / "base" / "model.onnx", folder / "pruned" / "model.onnx"
    export_model(spec, base.parent, progress=progress)
    prune_graph(base, pruned.parent, layers=tuple(sorted(layers)), progress=progress)
    with progress.task("export natively without those layers"):
        native = export_native(spec, sorted(layers), folder / "native")
    error = logit_error(native, pruned)
    backend = open_backend("ort-cpu")
    pair = backend.open(base, pruned)
    before = read_clocks()
    points = bench_points(backend, pair, request)
    effort = Effort(request.repeats, 60 * request.max_minutes)
    control = run_control(backend, pair, backend.control(native, pair), points, effort, progress=progress)
    passed = control.passed if error <= _TOLERANCE else False
    return {
        "schema": 1,
        "kind": "control",
        "command": request.command,
        "device": backend.device.model_dump(),
        "versions": tool_versions(),
        "clocks_before": before.model_dump(),
        "model": spec.name,
        "n_layers": pair.n_layers,
        "removed": sorted(layers),
        "logit_error_of_range": error,
        "logit_tolerance_of_range": _TOLERANCE,
        "nodes": {"native": _nodes(native), "pruned": _nodes(pruned)},
        "passed": passed,
        "sentence": f"{control.sentence}; largest difference of logits {error:.1e} of their range",
        "control": control.model_dump(),
    }


def logit_error(native: Path, pruned: Path, *, length: int = 24) -> float:
    """Largest difference of the two graphs' logits over a prefill and a decode step, as a share of their range."""
    from gatenorm_export.decode_signature import signature_of
    from gatenorm_export.sessions import open_session

    found = []
    rows = np.arange(length, dtype=np.int64)[None] * 7 % 97 + 3
    for graph in (native, pruned):
        session = open_session(graph)
        signature = signature_of(session, graph)
        past = [entry.empty(1) for entry in signature.past]
        logits = []
        for start, end in ((0, length - 1), (length - 1, length)):
            feed = {
                "input_ids": rows[:, start:end],
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(start, end, dtype=np.int64)[None],
            }
            inputs = {key: feed[key] for key in signature.plain}
            inputs |= {entry.name: value for entry, value in zip(signature.past, past, strict=True)}
            first, *past = session.run([signature.logits, *signature.present], inputs)
            logits.append(np.asarray(first))
        found.append(np.concatenate(logits, axis=1))
    return float(np.abs(found[0] - found[1]).max() / np.ptp(found[0]))


def _nodes(graph: Path) -> int:
    from gatenorm_export.pruning import describe_graph

    return describe_graph(graph).facts.n_nodes


if __name__ == "__main__":
    sys.exit(main())
