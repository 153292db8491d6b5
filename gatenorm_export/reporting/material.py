"""What a report is made of, checked to belong together."""

from __future__ import annotations

from dataclasses import dataclass

from gatenorm_export.errors import InputError
from gatenorm_export.provenance import require_scores
from gatenorm_export.records import ComparisonReport, EngineArtifact, LayerScores, ModelSpec, PrunePlan, RepairRecord


@dataclass(frozen=True)
class ReportMaterial:
    """The records of one pruning.

    ``engines`` may be empty; ``engines_not_built`` then says why. Two graphs that are compared by themselves come
    without scores and plan; ``model`` is then the checkpoint that their manifests name.

    Raises:
        RefusedError: the plan was made from another checkpoint than the scores.
        InputError: the records speak of different layers or different graphs.
    """

    scores: LayerScores | None
    plan: PrunePlan | None
    comparison: ComparisonReport
    engines: tuple[EngineArtifact, ...] = ()
    engines_not_built: str | None = None
    repair: RepairRecord | None = None
    model: ModelSpec | None = None

    def __post_init__(self) -> None:
        if self.scores is not None and self.plan is not None:
            self._check_plan(self.scores, self.plan)
        graphs = {self.comparison.base_sha256, self.comparison.pruned_sha256}
        for engine in self.engines:
            if engine.parent_sha256 not in graphs:
                raise InputError(
                    f"{engine.engine}: built from graph {engine.parent_sha256[:12]}, which is neither of the two that "
                    "were compared; build the engine again"
                )

    def _check_plan(self, scores: LayerScores, plan: PrunePlan) -> None:
        require_scores(plan, scores)
        if set(plan.drop) != set(self.comparison.dropped) or plan.n_layers != self.comparison.n_layers:
            raise InputError(
                f"the plan drops layers {sorted(plan.drop)} of {plan.n_layers}, the comparison is of a graph "
                f"without {sorted(self.comparison.dropped)} of {self.comparison.n_layers}; compare the planned graph"
            )

    @property
    def spec(self) -> ModelSpec | None:
        """The checkpoint, where it is known."""
        return self.scores.model if self.scores is not None else self.model

    @property
    def name(self) -> str:
        """What the model is called; of graphs that do not say, the base's path."""
        return self.spec.name if self.spec is not None else self.comparison.base

    def role_of(self, engine: EngineArtifact) -> str:
        """Which of the two compared graphs an engine was built from."""
        return "pruned" if engine.parent_sha256 == self.comparison.pruned_sha256 else "unpruned"
