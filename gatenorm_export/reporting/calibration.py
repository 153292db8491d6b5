"""What a report says of guard and repair."""

from __future__ import annotations

from gatenorm_export.records import GuardReport, Latency, RepairRecord
from gatenorm_export.reporting.formatting import count, fixed, percent
from gatenorm_export.reporting.tables import Column, Table


def guard_words(guard: GuardReport) -> tuple[str, ...]:
    """How the layers were chosen, and in plain words what was spared and why."""
    how = (
        "greedily, at each step the one that costs least" if guard.search == "greedy" else "in the order of the scores"
    )
    budget = f", none of which may multiply perplexity by more than {fixed(guard.budget, 3)}" if guard.budget else ""
    took = f" in {fixed(guard.seconds, 0)} s" if guard.seconds is not None else ""
    forced = ("The signs of a ruined model were seen, and the plan was forced.",) if guard.forced else ()
    return (
        f"The layers were chosen {how}{budget}, on {count(guard.n_tokens)} tokens of {guard.text} "
        f"({count(guard.n_measured)} measurements{took}).",
        *forced,
        *guard.sentences,
    )


def guard_table(guard: GuardReport) -> Table:
    """The removals, in the order in which they were accepted."""
    columns = tuple(
        Column(name, "number") for name in ("Step", "Layer", "Perplexity", "Ratio", "This step", "KL (nats)")
    )
    rows = tuple(
        (
            str(number),
            str(step.layer),
            fixed(step.ppl, 2),
            fixed(step.ppl_ratio, 3),
            fixed(step.cost, 3),
            fixed(step.kl_nats, 4),
        )
        for number, step in enumerate(guard.steps, 1)
    )
    return Table("Removals, each measured on top of those before", columns, rows)


def repair_words(repair: RepairRecord, latency: Latency | None) -> str:
    """What stands in for the removed attention, and what that costs; ``latency`` is against no repair."""
    return (
        f"Repaired by {repair.kind}, fitted in closed form on {count(repair.n_tokens)} tokens of {repair.text}: "
        f"{count(repair.n_parameters)} parameters and {count(repair.flops_per_token)} FLOPs per token come back, "
        f"{percent(repair.flops_share)} of what the removed projections took. The latency above is that of "
        f"the repaired graph.{_latency_words(latency) if latency is not None else ''}"
    )


def _latency_words(latency: Latency) -> str:
    _, speedup, low, high = latency.main
    decode = f"{fixed(speedup, 3)} ({fixed(low, 3)} to {fixed(high, 3)})"
    prefill = fixed(latency.prefill_speedup, 3)
    finding = " By the clock," if latency.decode_differs else " The repair costs no measurable time:"
    return f"{finding} decode is {decode} and prefill {prefill} times as fast as with the same layers just removed."
