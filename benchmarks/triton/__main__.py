"""Load on a Triton server that serves a base and its pruned model side by side, in turns, in one run.

    python -m benchmarks.triton base-bundle/ pruned-bundle/ --json benchmarks/results/triton.json

Writes a repository of each bundle, serves both with one tritonserver (`make triton`), sends the same requests to either
with aiperf, streamed, and prints p50 and p99 of the whole request, of the first token and between tokens, the tokens
per second, and the ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.triton.load import Aiperf, Traffic, find_aiperf, summary
from benchmarks.triton.server import Triton, serving
from gatenorm_export.artifacts import write_text
from gatenorm_export.deploying.triton import Load, TritonRequest, write_repository
from gatenorm_export.errors import GateNormError
from gatenorm_export.processor import device_name
from gatenorm_export.progress import OnStderr, Progress
from gatenorm_export.records import tool_versions

_MODELS = ("base", "pruned")
_WARM_UP_REQUESTS = 2


def main(argv: list[str] | None = None) -> int:
    """Serve, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the bundle of the unpruned model")
    parser.add_argument("pruned", type=Path, help="the bundle of the pruned one")
    parser.add_argument("--aiperf", type=Path, help="aiperf's program (default: the one on PATH)")
    parser.add_argument("--requests", type=int, default=12, help="requests to each model in a round (default: 12)")
    parser.add_argument("--concurrency", type=int, default=2, help="requests at a time (default: 2)")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of each request (default: 32)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds over both models, each begun by the other (2)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    try:
        aiperf = Aiperf(find_aiperf(args.aiperf), args.base.resolve())
        traffic = Traffic(args.requests, args.concurrency, args.tokens)
        with tempfile.TemporaryDirectory(prefix="gatenorm-bench-") as folder:
            result = measure((args.base, args.pruned), aiperf, traffic, args.rounds, Path(folder), progress=OnStderr())
    except GateNormError as error:
        sys.stderr.write(f"benchmarks.triton: {error}\n")
        return int(error.exit_code)
    result["ratio"] = {name: _ratio(name, base, result["pruned"][name]) for name, base in result["base"].items()}
    result["command"] = " ".join(["python -m benchmarks.triton", *(argv if argv is not None else sys.argv[1:])])
    if args.json is not None:
        write_text(args.json, json.dumps(result, indent=1) + "\n")
    sys.stdout.write(table(result))
    return 0


def measure(
    bundles: tuple[Path, Path], aiperf: Aiperf, traffic: Traffic, rounds: int, folder: Path, *, progress: Progress
) -> dict[str, Any]:
    """Everything in ``folder``; the result as JSON types."""
    for name, bundle in zip(_MODELS, bundles, strict=True):
        load = Load(max_running=traffic.concurrency)
        request = TritonRequest(bundle, folder / name, name=name, models=("generate",), load=load)
        write_repository(request, progress=progress)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in _MODELS}
    with serving(folder / "base", folder / "server", [f"--model-repository={folder / 'pruned'}"]) as server:
        for name in _MODELS:
            warm_up(server, name)
        each = []
        for turn in range(rounds):
            # Whatever drifts, such as clocks and temperatures, meets both alike.
            for name in _MODELS if turn % 2 == 0 else reversed(_MODELS):
                with progress.task(f"round {turn + 1}: {name}"):
                    found = aiperf.run(server.http, name, traffic, folder / f"{name}-{turn}")
                records[name] += found
                each.append({"round": turn, "model": name} | summary(found, traffic))
    return {
        "schema": 1,
        "kind": "triton-load",
        "device": device_name(),
        "versions": tool_versions(),
        "traffic": {"requests": traffic.requests, "concurrency": traffic.concurrency, "tokens": traffic.tokens},
        "rounds": each,
        **{
            name: joined([entry for entry in each if entry["model"] == name], records[name], traffic)
            for name in _MODELS
        },
    }


def warm_up(server: Triton, model: str) -> None:
    """A few requests without aiperf, so that the first that is timed finds memory and caches as the others do."""
    body = json.dumps({"text_input": "The first request is slower than the others.", "max_tokens": 8}).encode()
    for _ in range(_WARM_UP_REQUESTS):
        with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/generate", body) as answer:
            answer.read()


def joined(each: list[dict[str, Any]], records: list[dict[str, Any]], traffic: Traffic) -> dict[str, float]:
    """Percentiles over the requests of all rounds; tokens per second are the mean of the rounds, which were apart."""
    speeds = [float(entry["tokens_per_second"]) for entry in each]
    return summary(records, traffic) | {"tokens_per_second": sum(speeds) / len(speeds)}


def table(result: dict[str, Any]) -> str:
    """A row for each figure; above 1 the pruned model is better."""
    rows = [f"{'':24}{'base':>10}{'pruned':>10}{'ratio':>8}"]
    for name, base in result["base"].items():
        pruned = result["pruned"][name]
        ratio = result["ratio"][name]
        rows.append(f"{name:24}{base:>10.1f}{pruned:>10.1f}{'-' if ratio is None else f'{ratio:.3f}':>8}")
    return "\n".join(rows) + "\n"


def _ratio(name: str, base: float, pruned: float) -> float | None:
    better, worse = (pruned, base) if name == "tokens_per_second" else (base, pruned)
    # Two tokens of a tiny model may come in one piece, with no time between them.
    return better / worse if worse else None


if __name__ == "__main__":
    sys.exit(main())
