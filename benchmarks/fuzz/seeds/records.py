"""What the stages leave for each other: scores, plan, engine, run folder, results of a bench, a profile file."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from benchmarks.fuzz.inputs import Seed
from benchmarks.fuzz.seeds.checkpoints import checkpoint_seeds
from benchmarks.fuzz.seeds.decoders import decoder
from benchmarks.fuzz.seeds.examples import example
from benchmarks.fuzz.seeds.graphs import BESIDE, files_of, save
from gatenorm_export.planning import DropRequest, make_plan
from gatenorm_export.records import (
    ComparisonReport,
    EngineArtifact,
    Faithfulness,
    LayerScores,
    PrunePlan,
    Quality,
    RunManifest,
)
from gatenorm_export.records.bench import BenchReport


def _scores() -> LayerScores:
    from gatenorm_export.scoring import score_model
    from gatenorm_export.sources import resolve_model

    seed = checkpoint_seeds()[0]
    with tempfile.TemporaryDirectory() as made:
        for name, content in seed.files.items():
            (Path(made) / name).write_bytes(content)
        scores = score_model(resolve_model(made, whole=False))
    return scores.model_copy(update={"model": scores.model.model_copy(update={"name": "a model", "path": "in"})})


def _plan(scores: LayerScores) -> PrunePlan:
    return make_plan(scores, DropRequest(drop=1), scores_sha256="0" * 64)


def _text(record: LayerScores | PrunePlan | RunManifest | ComparisonReport | EngineArtifact | BenchReport) -> bytes:
    return record.to_json().encode()


def _stage_files(scores: LayerScores) -> tuple[Seed, ...]:
    scored = {"scores.json": _text(scores)}
    with tempfile.TemporaryDirectory() as made:
        save(decoder("plain"), Path(made), data=False)
        planned = files_of(Path(made)) | {"plan.json": _text(_plan(scores))}
    return (
        Seed("scores", scored, {"scores.json": "json"}, ("plan", "plan a share", "plan layers"), ("scores.json",)),
        Seed("plan", planned, {"plan.json": "json"}, ("prune by plan",), ("plan.json", "model.onnx")),
    )


def _engine() -> Seed:
    engine = b"vtrt" + bytes(range(256))
    digest = hashlib.sha256(engine).hexdigest()
    record = example(EngineArtifact, engine="model.engine", sha256=digest, bytes=len(engine))
    files = {"model.engine": engine, "model.engine.json": _text(record)}
    kinds = {"model.engine": "bytes", "model.engine.json": "json"}
    return Seed("engine", files, kinds, ("inspect engine", "open engine"), ("model.engine",))


def _run_folder(scores: LayerScores) -> Seed:
    from gatenorm_export.pruning import prune_graph

    plan = _plan(scores)
    with tempfile.TemporaryDirectory() as made:
        base, pruned = Path(made) / "base", Path(made) / "pruned"
        base.mkdir()
        save(decoder("plain"), base, data=False)
        record = prune_graph(base / "model.onnx", pruned, layers=plan.drop)
        files = files_of(Path(made))
    comparison = example(
        ComparisonReport,
        base="base/model.onnx",
        pruned="pruned/model.onnx",
        base_sha256=record.parent_sha256,
        pruned_sha256=hashlib.sha256(files["pruned/model.onnx"]).hexdigest(),
        dropped=plan.drop,
        n_layers=plan.n_layers,
        tower=plan.tower,
        quality=example(Quality),
        faithfulness=example(Faithfulness),
    )
    engine = example(EngineArtifact, parent_sha256=record.parent_sha256)
    manifest = example(RunManifest, model=scores.model)
    manifest = manifest.model_copy(update={"stages": {"build": manifest.stages["a"]}})
    files |= {
        "scores.json": _text(scores),
        "plan.json": _text(plan),
        "compare.json": _text(comparison),
        "manifest.json": _text(manifest),
        "engines/base.engine.json": _text(engine),
        "engines/pruned.engine.json": _text(engine),
    }
    kinds = {name: "json" for name in files if name.endswith(".json")}
    return Seed("run folder", files, kinds, ("report", "resume a run"))


def _finished_run(run: Seed) -> Seed:
    """The same run, finished and without engines: its records, and what lies beside the graph, on their way into a
    bundle. The graph stays as it is, for making a bundle runs it."""
    manifest = json.loads(run.files["manifest.json"])
    manifest["stages"] = {"compare": manifest["stages"]["build"]}
    files = {name: content for name, content in run.files.items() if not name.startswith("engines/")}
    files |= {"manifest.json": json.dumps(manifest).encode()}
    files |= {f"pruned/{name}": BESIDE[name] for name in ("config.json", "generation_config.json", "tokenizer.json")}
    kinds = {name: "json" for name in files if name.endswith(".json") and not name.startswith("base/")}
    return Seed("run folder, bundled", files, kinds, ("bundle a run",))


def _bench() -> Seed:
    files = {"bench.json": _text(example(BenchReport))}
    return Seed("bench results", files, {"bench.json": "json"}, ("hold to a baseline",), ("bench.json",))


def _profiles() -> Seed:
    shapes = {"min": [1, 1], "opt": [1, 1], "max": [2, 8]}
    files = {"profiles.json": json.dumps({"decode": {"input_ids": shapes}, "other": {"input_ids": shapes}}).encode()}
    return Seed("profile file", files, {"profiles.json": "json"}, ("read profiles",), ("profiles.json",))


def record_seeds() -> tuple[Seed, ...]:
    """Every seed of this file."""
    scores = _scores()
    run = _run_folder(scores)
    return (*_stage_files(scores), _engine(), run, _finished_run(run), _bench(), _profiles())
