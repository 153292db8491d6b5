"""What a report is made of, checked to belong together."""

from __future__ import annotations

from dataclasses import dataclass

from gatenorm_export.errors import InputError
from gatenorm_export.records import ComparisonReport, EngineArtifact, LayerScores, PrunePlan, RepairRecord


@dataclass(frozen=True)
class ReportMaterial:
    """The records of one pruning.

    ``engines`` may be empty; ``engines_not_built`` then says why.

    Raises:
        InputError: the records speak of different checkpoints, different layers or different graphs.
    """

    scores: LayerScores
    plan: PrunePlan
    comparison: ComparisonReport
    engines: tuple[EngineArtifact, ...] = ()
    engines_not_built: str | None = None
    repair: RepairRecord | None = None

    def __post_init__(self) -> None:
        if self.plan.model_digest != self.scores.model.tower(self.plan.tower).query_key_digest:
            raise InputError(
                f"the plan was made for checkpoint {self.plan.model_name!r} ({self.plan.model_digest[:12]}), "
                f"the scores are of {self.scores.model.name!r} ({self.scores.model.short_digest}); "
                "plan again from these scores"
            )
        if set(self.plan.drop) != set(self.comparison.dropped) or self.plan.n_layers != self.comparison.n_layers:
            raise InputError(
                f"the plan drops layers {sorted(self.plan.drop)} of {self.plan.n_layers}, the comparison is of a graph "
                f"without {sorted(self.comparison.dropped)} of {self.comparison.n_layers}; compare the planned graph"
            )
        graphs = {self.comparison.base_sha256, self.comparison.pruned_sha256}
        for engine in self.engines:
            if engine.parent_sha256 not in graphs:
                raise InputError(
                    f"{engine.engine}: built from graph {engine.parent_sha256[:12]}, which is neither of the two that "
                    "were compared; build the engine again"
                )

    def role_of(self, engine: EngineArtifact) -> str:
        """Which of the two compared graphs an engine was built from."""
        return "pruned" if engine.parent_sha256 == self.comparison.pruned_sha256 else "unpruned"
