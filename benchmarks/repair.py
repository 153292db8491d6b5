"""What guard and repair give back: perplexity ratios on texts that nothing was fitted on or chosen by.

    python -m benchmarks.repair GRAPH SCORES --texts man.txt code.py licence.txt --drops 4 8 12 --json out.json

One row for each number of removed layers and each repair: plain Gate-Norm and the guarded plan side by side, and the
geometric mean over the texts. Texts are judged in windows of 256 tokens, as ``gatenorm compare`` judges them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gatenorm_export.artifacts import write_text
from gatenorm_export.calibrating import CorpusRequest, GuardRequest, StreamModel, fit_repairs, guard_layers, load_corpus
from gatenorm_export.calibrating.metering import Meter
from gatenorm_export.comparing.text import load_text, tokenize
from gatenorm_export.planning import DropRequest, rank_layers
from gatenorm_export.processor import device_name
from gatenorm_export.progress import OnStderr
from gatenorm_export.records import LayerScores, PrunePlan, tool_versions
from gatenorm_export.repairs import parse_repair

WINDOW = 256


def main(argv: list[str] | None = None) -> int:
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, help="model.onnx, exported and not pruned")
    parser.add_argument("scores", type=Path)
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="the texts to judge on")
    parser.add_argument("--drops", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--repairs", nargs="+", default=["none", "bias", "mlp", "linear"])
    parser.add_argument("--max-text-tokens", type=int, default=2048)
    parser.add_argument("--plan", type=Path, help="a plan made with --guard, instead of a search for each repair")
    parser.add_argument("--no-gate-norm", action="store_true", help="the guarded plans alone")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    scores, progress = LayerScores.load(args.scores), OnStderr()
    model = StreamModel(args.graph)
    corpus = load_corpus(CorpusRequest(), args.graph.parent, scores.model)
    meters = {path.name: Meter(model, _windows(path, args, scores)) for path in args.texts}
    rows: list[dict[str, Any]] = []
    ranked = rank_layers(scores, DropRequest(drop=max(args.drops))).layers
    for kind in args.repairs:
        repair = parse_repair(kind)
        report = PrunePlan.load(args.plan).guard if args.plan is not None else None
        if report is None:
            request = GuardRequest(repair=repair, force=True)
            _, report = guard_layers(model, corpus, ranked, max(args.drops), request, progress=progress)
        greedy = [step.layer for step in report.steps]
        for drop in args.drops:
            plans = {"guard": tuple(greedy[:drop])} | ({} if args.no_gate_norm else {"gate-norm": ranked[:drop]})
            for plan, layers in plans.items():
                start = time.monotonic()
                fitted = fit_repairs(model, corpus.fitted, layers, repair, progress=progress)
                seconds = time.monotonic() - start
                ratios = {}
                for name, meter in meters.items():
                    meter.adopt(frozenset(), {})
                    meter.adopt(frozenset(layers), fitted)
                    ratios[name] = meter.cost(None).ppl / meter.base_ppl
                mean = math.exp(float(np.mean([math.log(ratio) for ratio in ratios.values()])))
                rows.append(
                    {
                        "repair": kind,
                        "drop": drop,
                        "plan": plan,
                        "layers": sorted(layers),
                        "ppl_ratio": mean,
                        "ppl_ratios": ratios,
                        "search_s": report.seconds if plan == "guard" else 0.0,
                        "fit_s": seconds,
                    }
                )
                sys.stdout.write(f"| {kind} | {drop} | {plan} | {mean:.3f} | " + _each(ratios) + " |\n")
                sys.stdout.flush()
                _save(args, argv, corpus.sha256, meters, rows)
    return 0


def _save(
    args: argparse.Namespace,
    argv: list[str] | None,
    corpus_sha256: str,
    meters: dict[str, Meter],
    rows: list[dict[str, Any]],
) -> None:
    """Write what was measured so far: a row takes minutes."""
    if args.json is not None:
        result = {
            "command": " ".join(["python -m benchmarks.repair", *(argv if argv is not None else sys.argv[1:])]),
            "device": device_name(),
            "versions": tool_versions(),
            "corpus_sha256": corpus_sha256,
            "base_ppl": {name: meter.base_ppl for name, meter in meters.items()},
            "rows": rows,
        }
        write_text(args.json, json.dumps(result, indent=1) + "\n")


def _windows(path: Path, args: argparse.Namespace, scores: LayerScores) -> np.ndarray:
    tokens = tokenize(load_text(path), args.graph.parent, scores.model, limit=args.max_text_tokens)
    if tokens is None or len(tokens) < WINDOW:
        raise SystemExit(f"{path}: holds fewer than {WINDOW} tokens, or the graph has no tokenizer beside it")
    n = len(tokens) // WINDOW
    return tokens[: n * WINDOW].reshape(n, WINDOW)


def _each(ratios: dict[str, float]) -> str:
    return ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())


if __name__ == "__main__":
    sys.exit(main())
