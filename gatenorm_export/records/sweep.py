"""What a sweep measured: a cell for each ranking, repair and number of layers."""

from __future__ import annotations

from typing import Literal

from gatenorm_export.records.base import Part, Record
from gatenorm_export.records.comparison import Latency
from gatenorm_export.records.graph import GraphFacts


class SweepOrder(Part):
    """The order in which a ranking lets layers go, the first to go first.

    ``values`` are what it ranks by: the score, the mean of 1 - cos, or, of ``guard``, KL in nats per token after the
    step; empty where it ranks by no figure. ``repair`` is set for ``guard``, which searches with the cell's own.
    ``ruined_from`` is the number of layers from which on guard saw a ruined model, for the ``reason`` given.
    """

    rank: str
    repair: str | None = None
    layers: tuple[int, ...]
    values: tuple[float, ...] = ()
    ruined_from: int | None = None
    reason: str | None = None


class SweepFigures(Part):
    """What one set of removed layers, repaired or not, costs and gains.

    ``kv_share`` is the KV cache that is left over the base's, None where the graph has no cache. ``n_parameters`` are
    the pruned graph's, those that a repair adds included. ``seconds`` is how long measuring took.
    """

    ppl: float
    ppl_ratio: float
    kl_nats: float
    kv_bytes_per_token: int
    kv_share: float | None
    n_parameters: int
    n_repair_parameters: int
    latency: Latency | None
    seconds: float


class SweepCell(Part):
    """One point of the sweep. Cells with one ``key`` remove the same layers with the same repair, measured once."""

    rank: str
    repair: str
    drop: int
    layers: tuple[int, ...]
    key: str
    figures: SweepFigures | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.rank}/{self.repair}/{self.drop}"


class SweepIdentity(Part):
    """What every figure of a sweep rests on: digests of graph, texts and tool versions, and the machine in words."""

    graph: str
    text: str
    calibration: str
    tools: str
    machine: str


class SweepReport(Record):
    """The paper's third experiment on one graph: quality against speed-up and cache over rankings and repairs.

    ``cells`` are those that were asked for last, in that order; ``earlier`` are measured cells of calls before, with
    the same identity. The fronts name the cells that no other beats in both figures.
    """

    kind: Literal["sweep"] = "sweep"
    model_name: str
    graph: str
    n_layers: int
    identity: SweepIdentity
    scores_sha256: str | None
    text: str
    n_text_tokens: int
    calibration_text: str
    n_calibration_tokens: int
    base: GraphFacts
    base_ppl: float | None
    orders: tuple[SweepOrder, ...]
    cells: tuple[SweepCell, ...]
    earlier: tuple[SweepCell, ...]
    speed_front: tuple[str, ...]
    kv_front: tuple[str, ...]
    sentence: str
    command: str
