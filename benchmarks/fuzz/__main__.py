"""``python -m benchmarks.fuzz``: mutated inputs of every format through every reader, and what came of them.

The same ``--seed`` makes the same inputs. Each is written to a folder of its own, and a worker process runs the library
on it: within a limit of memory and time, watched for files outside the folder, processes and sockets. A defect makes
the command end with 1; ``--keep`` lays its input out to be looked at, ``--number`` runs one input again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from benchmarks.fuzz.cases import make_case
from benchmarks.fuzz.judging import Verdict
from benchmarks.fuzz.pool import LIMIT_SECONDS, Plan, run_cases
from benchmarks.fuzz.regressions import REGRESSIONS, kept_inputs, remember
from benchmarks.fuzz.sandbox import MEMORY_BYTES
from benchmarks.fuzz.seeds import all_seeds
from gatenorm_export.records import tool_versions


def main() -> int:
    """Run, and write the results file that was asked for."""
    args = _parser().parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seeds, kept = all_seeds(), kept_inputs(REGRESSIONS)
    numbers = args.number or [*range(-len(kept), 0), *range(args.inputs)]
    plan = Plan(numbers, args.seed, tuple(args.only or ()), kept, args.workers, str(args.log))
    verdicts: list[Verdict] = []
    start = time.monotonic()
    run_cases(plan, seeds, lambda verdict: _tell(verdict, verdicts, len(numbers), verbose=bool(args.number)))
    seconds = time.monotonic() - start
    verdicts.sort(key=lambda verdict: verdict.number)
    defects = [verdict for verdict in verdicts if verdict.defect]
    _show(verdicts, seconds)
    if args.keep is not None:
        _keep(args.keep, plan, args.number or [verdict.number for verdict in defects])
    if args.remember:
        remember(REGRESSIONS, [make_case(args.seed, number, _chosen(plan)) for number in args.number or ()])
    if args.json is not None:
        args.json.write_text(json.dumps(_results(args, verdicts, len(kept), seconds), indent=2) + "\n")
    return 1 if defects else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many inputs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--only", action="append", metavar="SEED", help="only inputs made from this seed; repeatable")
    parser.add_argument("--number", type=int, action="append", help="only the input of this number; repeatable")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that show defects, or for --number's")
    parser.add_argument("--remember", action="store_true", help="put --number's inputs among the kept ones")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="what native code prints, and its crashes")
    return parser


def _tell(verdict: Verdict, verdicts: list[Verdict], total: int, *, verbose: bool) -> None:
    verdicts.append(verdict)
    if verdict.defect or verbose:
        edits = "; ".join(verdict.edits)[:160]
        print(
            f"{verdict.number}: {verdict.seed}, {verdict.target}: {edits}: {verdict.kind}: {verdict.detail}", flush=True
        )
    if len(verdicts) % 1000 == 0:
        print(f"{len(verdicts)} of {total}", flush=True)


def _chosen(plan: Plan) -> Any:
    return tuple(seed for seed in all_seeds() if not plan.only or seed.name in plan.only)


def _keep(folder: Path, plan: Plan, numbers: list[int]) -> None:
    for number in numbers:
        made = plan.kept[-1 - number] if number < 0 else make_case(plan.run_seed, number, _chosen(plan))
        root = folder / str(number)
        root.mkdir(parents=True, exist_ok=True)
        made.write(root)


def _by_seed(verdicts: list[Verdict]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        found[verdict.seed][verdict.kind] += 1
    return found


def _show(verdicts: list[Verdict], seconds: float) -> None:
    for seed, kinds in _by_seed(verdicts).items():
        print(f"{seed:24} {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}")
    total = Counter(verdict.kind for verdict in verdicts)
    slowest = max(verdicts, key=lambda verdict: verdict.seconds, default=None)
    print(f"{len(verdicts)} inputs in {seconds:.0f} s: {', '.join(f'{n} {kind}' for kind, n in sorted(total.items()))}")
    if slowest is not None:
        print(
            f"the slowest: {slowest.seconds:.2f} s, {slowest.seed}, {slowest.target}: {'; '.join(slowest.edits)[:120]}"
        )


def _results(args: argparse.Namespace, verdicts: list[Verdict], kept: int, seconds: float) -> dict[str, Any]:
    return {
        # As it is typed, without the places of this machine.
        "command": f"python -m benchmarks.fuzz --inputs {args.inputs} --seed {args.seed} --workers {args.workers}",
        "seed": args.seed,
        "inputs": len(verdicts) - kept,
        "kept_inputs": kept,
        "seconds": round(seconds, 1),
        "workers": args.workers,
        "limits": {"memory_bytes": MEMORY_BYTES, "processor_seconds": LIMIT_SECONDS},
        "slowest_seconds": round(max((verdict.seconds for verdict in verdicts), default=0.0), 3),
        "verdicts": dict(sorted(Counter(verdict.kind for verdict in verdicts).items())),
        "by_seed": {seed: dict(sorted(kinds.items())) for seed, kinds in _by_seed(verdicts).items()},
        "defects": [
            {"number": one.number, "seed": one.seed, "target": one.target, "kind": one.kind, "detail": one.detail}
            for one in verdicts
            if one.defect
        ],
        "versions": tool_versions() | {"python": platform.python_version()},
    }


if __name__ == "__main__":
    sys.exit(main())
