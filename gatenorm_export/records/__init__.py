"""What passes between the stages: frozen records, JSON in and out, never a tensor.

Every record carries its schema version and the versions of the tools that made it. Field names carry units. Files are
named by path and sha256, so that a stage can check that its input is the output of the stage before.
"""

from gatenorm_export.records.base import SCHEMA_VERSION, TOOLS, Convention, Part, Record, tool_versions
from gatenorm_export.records.comparison import (
    AnyQuality,
    ClassQuality,
    ComparisonReport,
    EmbeddingQuality,
    Faithfulness,
    Latency,
    LatencyRow,
    Quality,
    Sizes,
    StepError,
    Threshold,
    TranscriptQuality,
)
from gatenorm_export.records.correlation import Agreement, CorrelationReport, LayerMeasures
from gatenorm_export.records.engine import EngineArtifact, Profile, ProfileBounds
from gatenorm_export.records.engine_accuracy import EngineAccuracy, OutputAccuracy, WorstElement
from gatenorm_export.records.evaluation import Evaluation, ModelResult, TaskMetric, TaskResult
from gatenorm_export.records.graph import (
    ExportedGraph,
    GraphFacts,
    GraphFile,
    KVCache,
    PrunedGraph,
    RepairedLayer,
    RepairRecord,
    Weights,
)
from gatenorm_export.records.guard import GuardReport, GuardStep, PlainCost, SparedLayer
from gatenorm_export.records.inspection import AttentionSublayer, GraphInspection, UnmatchedNode
from gatenorm_export.records.model import (
    CutCertainty,
    FileDigest,
    LayerScore,
    LayerScores,
    ModelSpec,
    PrunePlan,
    Source,
    TowerSpec,
)
from gatenorm_export.records.prepared import (
    ConversionCheck,
    LoweredOperator,
    OutputDifference,
    Precision,
    PreparedGraph,
)
from gatenorm_export.records.recovery import RecoveryLoss, RecoveryPoint, RecoveryQuality, RecoveryReport
from gatenorm_export.records.run import Artifact, RunManifest, StageEntry
from gatenorm_export.records.sensitivity import FoldedNorms, FoldedScore, RankingShift
from gatenorm_export.records.sweep import SweepCell, SweepFigures, SweepIdentity, SweepOrder, SweepReport
from gatenorm_export.records.trend import DepthTrend

__all__ = [
    "SCHEMA_VERSION",
    "TOOLS",
    "Agreement",
    "AnyQuality",
    "Artifact",
    "AttentionSublayer",
    "ClassQuality",
    "ComparisonReport",
    "Convention",
    "ConversionCheck",
    "CorrelationReport",
    "CutCertainty",
    "DepthTrend",
    "EmbeddingQuality",
    "EngineAccuracy",
    "EngineArtifact",
    "Evaluation",
    "ExportedGraph",
    "Faithfulness",
    "FileDigest",
    "FoldedNorms",
    "FoldedScore",
    "GraphFacts",
    "GraphFile",
    "GraphInspection",
    "GuardReport",
    "GuardStep",
    "KVCache",
    "Latency",
    "LatencyRow",
    "LayerMeasures",
    "LayerScore",
    "LayerScores",
    "LoweredOperator",
    "ModelResult",
    "ModelSpec",
    "OutputAccuracy",
    "OutputDifference",
    "Part",
    "PlainCost",
    "Precision",
    "PreparedGraph",
    "Profile",
    "ProfileBounds",
    "PrunePlan",
    "PrunedGraph",
    "Quality",
    "RankingShift",
    "Record",
    "RecoveryLoss",
    "RecoveryPoint",
    "RecoveryQuality",
    "RecoveryReport",
    "RepairRecord",
    "RepairedLayer",
    "RunManifest",
    "Sizes",
    "Source",
    "SparedLayer",
    "StageEntry",
    "StepError",
    "SweepCell",
    "SweepFigures",
    "SweepIdentity",
    "SweepOrder",
    "SweepReport",
    "TaskMetric",
    "TaskResult",
    "Threshold",
    "TowerSpec",
    "TranscriptQuality",
    "UnmatchedNode",
    "Weights",
    "WorstElement",
    "tool_versions",
]
