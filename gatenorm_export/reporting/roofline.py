"""What a report says of the roofline: how much of the predicted speed-up was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gatenorm_export.records import Latency, LatencyRow
from gatenorm_export.records.bench import RooflineRow
from gatenorm_export.reporting.formatting import SPACE, count, number, percent, times


def roofline_rows(latency: Latency) -> list[tuple[LatencyRow, RooflineRow]]:
    """The rows that have a prediction."""
    return [(row, row.roofline) for row in latency.rows if row.roofline is not None]


def roofline_words(latency: Latency) -> str:
    """What was predicted from, and which rows reach it by their whole interval; empty for records of before."""
    rows = roofline_rows(latency)
    if not rows:
        return f"There is no roofline: {latency.roofline_reason}." if latency.roofline_reason else ""
    named: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for row, found in rows:
        words = f"{row_label(row)}: {times(row.speedup)} of {times(found.speedup)}"
        named[found.reached(row.speedup_low)].append(words)
    predicted = "the speed-up that the roofline predicts"
    findings = doubtful_rows(named, predicted, space=SPACE)
    if len(named[True]) == len(rows):
        findings = [f"Every row has at least 95{SPACE}% of {predicted}, by its whole interval."]
    return " ".join([*findings, _from(latency)]).strip()


def doubtful_rows(named: Mapping[bool | None, Sequence[str]], predicted: str, *, space: str = " ") -> list[str]:
    """A sentence on the rows that are short of 95 % of the prediction, one on those whose intervals leave it open.

    ``named`` are all rows in words, by whether they reach it; ``space`` stands before a per cent sign.
    """
    n_rows, sentences = sum(map(len, named.values())), []
    if named[False]:
        sentences.append(
            f"More than 5{space}% of {predicted} is left on the table in {len(named[False])} of {n_rows} rows: "
            f"{'; '.join(named[False])}."
        )
    if named[None]:
        sentences.append(
            f"Whether {len(named[None])} of {n_rows} rows have at least 95{space}% of the speed-up that the roofline "
            f"predicts is not decided, their intervals reach to both sides of it: {'; '.join(named[None])}."
        )
    return sentences


def lowest_share(latency: Latency | None) -> tuple[str, str] | None:
    """Value and note of the key figure; None without a roofline."""
    rows = roofline_rows(latency) if latency is not None else []
    if not rows:
        return None
    row, found = min(rows, key=lambda pair: pair[1].share)
    word = ", not decided" if found.reached(row.speedup_low) is None else ""
    note = f"lowest of {count(len(rows))}: {row_label(row)}, {times(found.speedup)} predicted{word}"
    return percent(found.share), note


def row_label(row: LatencyRow) -> str:
    """A measured point in words."""
    batch = f", batch {count(row.batch)}" if row.batch is not None else ""
    if row.phase == "prefill":
        return f"prefill of {count(row.sequence)} tokens{batch}"
    return f"decode after {count(row.sequence)} tokens{batch}"


def _from(latency: Latency) -> str:
    probe = latency.probe
    if probe is None:
        return ""
    return (
        f"It is predicted from the bytes and operations that were removed, at {number(probe.bytes_per_s / 1e9)}{SPACE}"
        f"GB/s and {number(probe.flops_per_s / 1e9)}{SPACE}GFLOP/s in {probe.dtype}, which the device was measured to "
        f"do ({probe.how})."
    )
