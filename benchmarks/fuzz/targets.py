"""What is run on an input: the verbs as a user types them, and readers that a verb reaches only after long work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz.broken_targets import BROKEN_TARGETS
from benchmarks.fuzz.inputs import IN, OUT

Target = Callable[[Path], int]
"""The root of a case -> an exit code; readers raise what the command line would catch."""


def _verb(*words: str) -> Target:
    """A command line; ``{in}`` and ``{out}`` are the folders of the case."""

    def run(root: Path) -> int:
        from gatenorm_export.cli.main import main

        places = {"in": root / IN, "out": root / OUT}
        return main([word.format(**places) for word in words])

    return run


def _resolve_whole(place: str) -> Target:
    """What `run` and `export` read before they load the model."""

    def run(root: Path) -> int:
        from gatenorm_export.sources import resolve_model

        resolve_model(str(root / IN / place) if place else str(root / IN))
        return 0

    return run


def _read_for_build(root: Path) -> int:
    """What `build` reads before TensorRT is started."""
    from gatenorm_export.building import ShapeRequest, make_profiles
    from gatenorm_export.building.network import read_network
    from gatenorm_export.kinds import kind_of_graph
    from gatenorm_export.precision import graph_precision

    graph = root / IN / "model.onnx"
    kind_of_graph(graph)
    make_profiles(graph, ShapeRequest(1, 8, 16, 2))
    read_network(graph)
    graph_precision(graph)
    return 0


def _prepare(root: Path) -> int:
    from gatenorm_export.precision import prepare_graph

    graph, out = root / IN / "model.onnx", root / OUT
    prepare_graph(graph, out, flavour="tensorrt", precision="fp16", measured=False)
    return 0


def _open_engine(root: Path) -> int:
    from gatenorm_export.building.opening import open_engine

    open_engine(root / IN / "model.engine")
    return 0


def _resume(root: Path) -> int:
    from gatenorm_export.ledger import Ledger
    from gatenorm_export.progress import Quiet
    from gatenorm_export.records import RunManifest

    spec = RunManifest.load(root / IN / "manifest.json").model
    ledger = Ledger(root / IN, spec, "run", force=False, progress=Quiet())
    del ledger
    return 0


def _hold_to_baseline(root: Path) -> int:
    from gatenorm_export.benching.gate import hold_to_baseline, read_baseline

    found = read_baseline(root / IN)
    hold_to_baseline(found, found, "bench.json", 0.03, across_devices=False)
    return 0


def _open_bundle(root: Path) -> int:
    from gatenorm_export.bundling import open_bundle

    bundle = open_bundle(root / IN)
    if bundle.graph_path is not None:
        _ = bundle.graph_path.stat()
    return 0


def _read_profiles(root: Path) -> int:
    from gatenorm_export.building.profile_files import load_overrides

    load_overrides(root / IN / "profiles.json")
    return 0


TARGETS: dict[str, Target] = {
    "score": _verb("score", "{in}", "--json", "--quiet"),
    "score a cut": _verb("score", "{in}", "--drop", "1", "-o", "{out}"),
    "score per head and folded": _verb("score", "{in}", "--variant", "per-head", "--fold-norms", "--quiet"),
    "resolve whole": _resolve_whole(""),
    "score gguf": _verb("score", "{in}/model.gguf", "--quiet"),
    "score gguf, a cut": _verb("score", "{in}/model.gguf", "--drop", "1", "-o", "{out}", "--json"),
    "score gguf part": _verb("score", "{in}/m-00002-of-00002.gguf", "--quiet"),
    "resolve gguf whole": _resolve_whole("model.gguf"),
    "inspect": _verb("inspect", "{in}/model.onnx", "--quiet"),
    "prune": _verb("prune", "{in}/model.onnx", "--layers", "0", "-o", "{out}"),
    "prune keeping names": _verb("prune", "{in}", "--layers", "0", "--kv-names", "keep", "-o", "{out}/a.onnx"),
    "prune by plan": _verb("prune", "{in}", "--plan", "{in}/plan.json", "-o", "{out}", "--quiet"),
    "score graph": _verb("score", "{in}/model.onnx", "--quiet"),
    "read for a build": _read_for_build,
    "prepare for an engine": _prepare,
    "plan": _verb("plan", "{in}/scores.json", "--drop", "1", "-o", "{out}"),
    "plan a share": _verb("plan", "{in}/scores.json", "--ratio", "0.5", "--protect", "0", "--json", "--quiet"),
    "plan layers": _verb("plan", "{in}/scores.json", "--layers", "0", "--quiet"),
    "inspect engine": _verb("inspect", "{in}/model.engine"),
    "open engine": _open_engine,
    "report": _verb("report", "{in}", "-o", "{out}"),
    "resume a run": _resume,
    "bundle a run": _verb("bundle", "{in}", "-o", "{out}/bundle", "--quiet"),
    "open bundle": _open_bundle,
    "verify bundle": _verb("verify", "{in}", "--files-only", "--quiet"),
    "serve bundle": _verb("triton", "{in}", "-o", "{out}/models", "--quiet"),
    "hold to a baseline": _hold_to_baseline,
    "read profiles": _read_profiles,
}
"""Every target by the name that seeds call it."""

TARGETS |= BROKEN_TARGETS
