"""The main job: the stages in their order. The only file that knows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatenorm_export.architectures import adapter_for
from gatenorm_export.errors import NoEngineError
from gatenorm_export.graphs import manifest_file
from gatenorm_export.kept_work import forget, kept_beside
from gatenorm_export.kinds import ModelKind, graph_tower, kind_of, refuse_calibration
from gatenorm_export.ledger import Ledger
from gatenorm_export.planning import DropRequest, chosen_tower, make_plan
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import (
    BundleManifest,
    ComparisonReport,
    EngineArtifact,
    LayerScores,
    ModelSpec,
    PrunedGraph,
    PrunePlan,
)
from gatenorm_export.reporting import ReportMaterial, write_report
from gatenorm_export.run_folder import COMPARISON, GRAPHS, PLAN, SCORES, engine_file, report_material

if TYPE_CHECKING:
    from gatenorm_export.building import BuildOptions, Flavour, ShapeRequest
    from gatenorm_export.calibrating import CorpusRequest, GuardRequest
    from gatenorm_export.comparing.request import ComparisonRequest
    from gatenorm_export.repairs import Repair
    from graph_passes import KVNames


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """What a user asks of the main job. ``flavour`` is a TensorRT flavour, "auto" or "none"; ``bundle`` the folder of
    the bundle that a run becomes whose proof and limits hold."""

    model: str
    out: Path
    drop: DropRequest
    kv_names: KVNames
    flavour: str
    shapes: ShapeRequest
    comparison: ComparisonRequest
    repair: Repair
    calibration: CorpusRequest
    guard: GuardRequest | None = None
    build: BuildOptions | None = None
    force: bool = False
    bundle: Path | None = None


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What the main job made, and which stages an earlier run had already done."""

    material: ReportMaterial
    scores: LayerScores
    plan: PrunePlan
    reused: tuple[str, ...]
    files: tuple[Path, ...]
    bundle: BundleManifest | None = None

    def to_object(self) -> dict[str, Any]:
        """One JSON object for pipelines: what ``compare`` prints, with the plan, the engines and the files."""
        return self.material.comparison.to_object() | {
            "kind": "run",
            "drop": list(self.plan.drop),
            "engines": [engine.to_object() for engine in self.material.engines],
            "engines_not_built": self.material.engines_not_built,
            "reused": list(self.reused),
            "report": [str(path) for path in self.files],
            "bundle": self.bundle.to_object() if self.bundle is not None else None,
        }


def run_pipeline(request: RunRequest, *, progress: Progress | None = None) -> RunResult:
    """Score, plan, export, prune, build, compare and report into one folder; reuse what has not changed.

    Raises:
        GateNormError: a stage failed; stages before it stay recorded and are reused by the next run.
    """
    from gatenorm_export.building import check_shapes
    from gatenorm_export.building.engine_choice import EngineChoice
    from gatenorm_export.sources import resolve_model

    progress = progress or Quiet()
    # Asked for by name, an engine stage that cannot run is an error before minutes are spent on the other stages.
    choice = EngineChoice.of(request.flavour)
    if request.bundle is not None:
        from gatenorm_export.bundling import check_place

        check_place(request.bundle, request.out)
    spec = resolve_model(request.model, progress=progress)
    # A model that could not be exported is refused before it is scored.
    adapter_for(spec.architecture)
    ledger = Ledger(request.out, spec, request.comparison.command, force=request.force, progress=progress)
    run = _Run(request, ledger, progress, spec_digest=spec.digest)
    scores = run.score(spec)
    tower = chosen_tower(scores, request.drop.tower)
    kind = run.kind = kind_of(spec, tower)
    # What means nothing for this kind of model is an error before it is exported.
    request.comparison.check(kind)
    refuse_calibration(spec, kind, guard=request.guard is not None, repair=not request.repair.nothing)
    choice = choice.for_kind(kind)
    if choice.flavour is not None:
        check_shapes(spec, request.shapes)
    run.export(spec)
    plan = run.plan(scores)
    run.prune(plan)
    try:
        engines = run.build(choice.flavour) if choice.flavour is not None else ()
    except NoEngineError as error:
        choice, engines = choice.without(error), ()
    if choice.flavour is None:
        ledger.skip("build", choice.reason)
    run.compare(engines)
    material = report_material(request.out)
    ledger.stage(
        "report",
        {"not_built": choice.reason},
        [ledger.sha256("compare", COMPARISON), ledger.sha256("plan", PLAN), ledger.sha256("score", SCORES)],
        lambda: write_report(request.out, material),
    )
    bundle = run.bundle(material.comparison) if request.bundle is not None else None
    return RunResult(material, scores.narrowed(plan.tower), plan, tuple(ledger.reused), ledger.paths("report"), bundle)


class _Run:
    """The stages bound to one request and one ledger."""

    def __init__(self, request: RunRequest, ledger: Ledger, progress: Progress, *, spec_digest: str) -> None:
        self._request = request
        self._ledger = ledger
        self._progress = progress
        self._source = spec_digest
        self._out = request.out
        self.kind: ModelKind | None = None

    @property
    def _graph(self) -> str:
        """The file name of the graph that is pruned."""
        assert self.kind is not None
        return self.kind.graph

    def score(self, spec: ModelSpec) -> LayerScores:
        from gatenorm_export.scoring import ScoreRequest, score_model

        drop = self._request.drop
        request = ScoreRequest(
            towers=(drop.tower,) if drop.tower else None,
            cuts=(drop.drop,) if drop.drop is not None else (),
            ratio=drop.ratio,
            protect=drop.protect,
            # A search looks at the order of all scores.
            exact=self._request.guard is not None or drop.layers is not None,
        )

        def produce() -> Iterable[Path]:
            scores = score_model(spec, request, progress=self._progress)
            scores.save(self._out / SCORES)
            return [self._out / SCORES]

        self._ledger.stage("score", {"name": spec.name, **dataclasses.asdict(request)}, [self._source], produce)
        scores = LayerScores.load(self._out / SCORES)
        self._ledger.describe(convention=scores.convention)
        return scores

    def plan(self, scores: LayerScores) -> PrunePlan:
        digest, request = self._ledger.sha256("score", SCORES), self._request
        decides: dict[str, Any] = dataclasses.asdict(request.drop)
        parents = [digest]
        if request.guard is not None:
            decides |= {"guard": dataclasses.asdict(request.guard), "text": request.calibration.decides()}
            parents.append(self._ledger.sha256("export", f"base/{self._graph}"))

        def produce() -> Iterable[Path]:
            if request.guard is None:
                plan = make_plan(scores, request.drop, scores_sha256=digest)
            else:
                from gatenorm_export.calibrating import CACHE_NAME, guarded_plan

                plan = guarded_plan(
                    scores,
                    self._out / "base" / self._graph,
                    request.drop,
                    request.guard,
                    request.calibration,
                    scores_sha256=digest,
                    cache=self._out / CACHE_NAME,
                    progress=self._progress,
                )
            plan.save(self._out / PLAN)
            return [self._out / PLAN]

        self._ledger.stage("plan", decides, parents, produce)
        return PrunePlan.load(self._out / PLAN)

    def export(self, spec: ModelSpec) -> None:
        folder = self._out / "base"

        def produce() -> Iterable[Path]:
            from gatenorm_export.exporting import export_model

            record = export_model(spec, folder, tower=tower, progress=self._progress)
            # A speech model's other graph too, and its manifest: the transcripts are made with both.
            others = [folder / name for name in kind.graphs if name != self._graph]
            paths = [manifest_file(folder / self._graph), *(folder / file.name for file in record.files)]
            return dict.fromkeys([*paths, *others, *map(manifest_file, others)])

        assert self.kind is not None
        tower, kind = self.kind.tower, self.kind.kind
        decides = {"precision": "fp32"} | ({"tower": graph_tower(tower)} if tower and len(kind.graphs) == 1 else {})
        self._ledger.stage("export", decides, [self._source], produce)

    def prune(self, plan: PrunePlan) -> None:
        base, folder = self._out / "base" / self._graph, self._out / "pruned"
        plan_sha256 = self._ledger.sha256("plan", PLAN)

        def produce() -> Iterable[Path]:
            from gatenorm_export.pruning import prune_graph

            repaired = None
            if not self._request.repair.nothing:
                from gatenorm_export.calibrating import fit_plan

                repair, text = self._request.repair, self._request.calibration
                repaired = fit_plan(base, plan.drop, repair, text, progress=self._progress)
            record = prune_graph(
                base,
                folder,
                plan=plan,
                plan_sha256=plan_sha256,
                repaired=repaired,
                kv_names=self._request.kv_names,
                progress=self._progress,
            )
            return [manifest_file(folder / self._graph), *(folder / file.name for file in record.files)]

        parents = [self._ledger.sha256("export", f"base/{self._graph}"), plan_sha256]
        decides: dict[str, Any] = {"kv_names": self._request.kv_names}
        if not self._request.repair.nothing:
            decides |= {"repair": str(self._request.repair), "text": self._request.calibration.decides()}
        self._ledger.stage("prune", decides, parents, produce)
        record = PrunedGraph.load(manifest_file(folder / self._graph))
        self._ledger.describe(n_layers=record.n_layers, layer_map=record.layer_map)

    def build(self, flavour: Flavour) -> tuple[EngineArtifact, ...]:
        def produce() -> Iterable[Path]:
            from gatenorm_export.building import build_engine

            for name in GRAPHS:
                engine = engine_file(self._out, name)
                graph = self._out / name / self._graph
                shapes, options, progress = self._request.shapes, self._request.build, self._progress
                build_engine(graph, engine, flavour=flavour, shapes=shapes, options=options, progress=progress)
                yield from (engine, engine.with_suffix(".engine.json"))

        decides = {"flavour": flavour.name, "version": flavour.version, **dataclasses.asdict(self._request.shapes)}
        if self._request.build is not None:
            decides |= self._request.build.decides()
        self._ledger.stage("build", decides, self._graphs(), produce)
        return tuple(EngineArtifact.load(engine_file(self._out, name).with_suffix(".engine.json")) for name in GRAPHS)

    def compare(self, engines: tuple[EngineArtifact, ...]) -> None:
        request = self._request.comparison

        def produce() -> Iterable[Path]:
            from gatenorm_export.comparing.compare import compare_graphs
            from gatenorm_export.comparing.engine_pair import EnginePair

            base, pruned = (self._out / name / self._graph for name in GRAPHS)
            whole, cut = (engine_file(self._out, name) for name in GRAPHS)
            pair = EnginePair(whole, cut, engines[0], engines[1], asked=False) if engines else None
            kept = kept_beside(self._out, "compare")
            if self._request.force:
                forget(kept)
            report = compare_graphs(base, pruned, request, engines=pair, kept=kept, progress=self._progress)
            report.save(self._out / COMPARISON)
            forget(kept)
            return [self._out / COMPARISON]

        decides = request.decides()
        if engines:
            from gatenorm_export.building import find_gpu

            # Engines that no GPU could run are run by the next run that has one.
            decides |= {"gpu": str(find_gpu())}
        self._ledger.stage("compare", decides, [*self._graphs(), *(e.sha256 for e in engines)], produce)

    def bundle(self, comparison: ComparisonReport) -> BundleManifest | None:
        """The bundle of a run that may be served; it lies outside the run's folder, so the ledger has no part in it."""
        from gatenorm_export.bundling import BundleRequest, make_bundle

        assert self._request.bundle is not None
        if not comparison.passed:
            self._progress.say(f"bundle: not made, {self._request.bundle} is left as it was: {comparison.verdict}")
            return None
        return make_bundle(BundleRequest(self._out, self._request.bundle), progress=self._progress)

    def _graphs(self) -> list[str]:
        return [
            self._ledger.sha256("export", f"base/{self._graph}"),
            self._ledger.sha256("prune", f"pruned/{self._graph}"),
        ]
