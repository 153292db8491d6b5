"""What a report says of quality, by the measure that fits the model."""

from __future__ import annotations

from gatenorm_export.records import (
    AnyQuality,
    ClassQuality,
    EmbeddingQuality,
    LabelQuality,
    Quality,
    ScoreQuality,
    TranscriptQuality,
)
from gatenorm_export.reporting.formatting import count, fixed, percent
from gatenorm_export.reporting.speed import Bar, position
from gatenorm_export.reporting.tables import Cells, Column, Table

OtherQuality = EmbeddingQuality | ClassQuality | ScoreQuality | LabelQuality | TranscriptQuality
"""What a model that is no decoder is judged by."""

Share = tuple[str, float | None]
"""A label and a share from 0 to 1; None where there is none."""


def quality_table(quality: AnyQuality) -> Table:
    """What pruning cost, each measure with a phrase that explains it."""
    if isinstance(quality, Quality):
        return _text_table(quality)
    rows = tuple((label, value, phrase) for label, value, phrase in quality_rows(quality))
    caption = {
        "embeddings": "Quality: the same items as vectors",
        "classes": "Quality: choices on the same items",
        "scores": "Quality: scores of the same items",
        "labels": "Quality: labels of the same items",
        "transcript": "Quality: transcripts of the same sounds",
    }[quality.measure]
    return Table(caption, (Column("Measure"), Column("Result", "number"), Column("In plain words")), rows)


def quality_rows(quality: OtherQuality) -> tuple[tuple[str, str, str], ...]:
    """Name, figure and explanation of every measure of a model that is no decoder."""
    if isinstance(quality, ScoreQuality):
        of = f", mean of {quality.n_scores} scores" if quality.n_scores > 1 else ""
        return (
            (
                "Rank correlation of scores",
                fixed(quality.spearman_rho, 4),
                f"whether the items still sort alike (Spearman{of}); 1 is the same order, 0 is none",
            ),
            (
                "Mean deviation of scores",
                fixed(quality.mean_deviation, 4),
                f"how far a score moves, in standard deviations of the unpruned ones{of}; 0 is equal",
            ),
        )
    if isinstance(quality, LabelQuality):
        common = quality.common_labels
        return (
            (
                "Labels in common",
                "–" if common is None else percent(common),
                f"of the labels that either model gives, how many both give; the unpruned one gives {given(quality)}",
            ),
            (
                "Decision agreement",
                percent(quality.decision_agreement),
                "how often both decide alike on a label, given or not; labels that are never given raise it",
            ),
            ("Equal items", percent(quality.equal_items), "how many items have all their labels as before"),
        )
    if isinstance(quality, EmbeddingQuality):
        return (
            (
                "Mean cosine",
                fixed(quality.mean_cosine, 4),
                f"of each item's two vectors ({quality.embedding}); 1 is equal",
            ),
            ("Lowest cosine", fixed(quality.min_cosine, 4), "of the item that moved most"),
            *_order_rows(quality),
        )
    kl = (
        "KL divergence (nats)",
        fixed(quality.kl_nats, 4),
        "how far the pruned prediction is from the unpruned one; 0 is equal",
    )
    if isinstance(quality, ClassQuality):
        top1 = (
            "Top-1 agreement",
            percent(quality.top1_agreement),
            f"how often both choose the same of {count(quality.n_classes)}",
        )
        if quality.top5_agreement is None:
            return top1, kl
        top5 = "Top-5 agreement", percent(quality.top5_agreement), "how much the five likeliest have in common"
        return top1, top5, kl
    return (
        (
            "Token error rate",
            percent(quality.token_error_rate),
            "edits that turn the unpruned transcript into the pruned one, for each of its tokens",
        ),
        (
            "Equal transcripts",
            percent(quality.equal_transcripts),
            "how many clips are transcribed token for token alike",
        ),
        (
            "Top-1 agreement",
            percent(quality.top1_agreement),
            "how often both put the same token first, when both are given the unpruned transcript so far",
        ),
        kl,
    )


def _order_rows(quality: EmbeddingQuality) -> tuple[tuple[str, str, str], ...]:
    """What stays of which items are near which. Without two figures, why there are none and what decides instead."""
    overlap, rho = quality.neighbour_overlap, quality.spearman_rho
    if overlap is None or rho is None:
        reason = f"not given, for {quality.no_order_reason}"
        return (
            ("Neighbours in common", "–", f"{reason}; the mean cosine decides"),
            ("Rank correlation of similarities", "–", reason),
        )
    return (
        (
            f"Top-{quality.neighbours} neighbours in common",
            percent(overlap),
            "how many of the nearest other items are still the nearest: what a search returns; chance keeps "
            f"{percent(quality.chance_overlap)}",
        ),
        (
            "Rank correlation of similarities",
            fixed(rho, 4),
            "whether more similar pairs of items are still the more similar ones (Spearman); 1 is the same order",
        ),
    )


def given(quality: LabelQuality) -> str:
    """How many labels the unpruned model gives, of how many."""
    return f"{count(quality.n_given)} of {count(quality.n_items * quality.n_labels)}"


def quality_source(quality: AnyQuality) -> str:
    """What it was measured on."""
    if isinstance(quality, Quality):
        return f"Measured on {quality.text}, {count(quality.n_tokens)} tokens."
    if isinstance(quality, TranscriptQuality):
        clips = "clip" if quality.n_clips == 1 else "clips"
        return f"Measured on {quality.text}: {quality.n_clips} {clips}, {count(quality.n_tokens)} unpruned tokens."
    items = f"{count(quality.n_items)} {quality.items}"
    if isinstance(quality, EmbeddingQuality) and (quality.n_distinct or quality.n_items) < quality.n_items:
        items += f", of which the unpruned model tells {count(quality.n_distinct or 0)} apart"
    return f"Measured on {quality.text}: {items}."


def quality_card(quality: AnyQuality) -> tuple[str, str, str]:
    """Label, value and note of the key figure."""
    if isinstance(quality, Quality):
        note = f"{fixed(quality.base_ppl, 3)} → {fixed(quality.pruned_ppl, 3)}, 1 is unchanged"
        return "Perplexity ratio", fixed(quality.ppl_ratio, 3), note
    if isinstance(quality, EmbeddingQuality):
        return "Mean cosine", fixed(quality.mean_cosine, 3), f"lowest {fixed(quality.min_cosine, 3)}, 1 is unchanged"
    if isinstance(quality, TranscriptQuality):
        return "Token error rate", percent(quality.token_error_rate), "0 is unchanged"
    over = f"over {count(quality.n_items)} {quality.items}"
    if isinstance(quality, ScoreQuality):
        moved = f"scores move by {fixed(quality.mean_deviation, 2)} standard deviations"
        return "Rank correlation", fixed(quality.spearman_rho, 3), f"{over}; {moved}"
    if isinstance(quality, LabelQuality):
        common = quality.common_labels
        note = f"the unpruned model gives {given(quality)}"
        return "Labels in common", "–" if common is None else percent(common), note
    return "Top-1 agreement", percent(quality.top1_agreement), over


def agreement_bars(quality: AnyQuality) -> tuple[Bar, ...]:
    """Shares of what stayed the same."""
    figures = [(label, value, fixed(value, 3)) for label, value in _alike(quality)]
    figures += [(label, share, percent(share)) for label, share in _shares(quality) if share is not None]
    return tuple(Bar(label, position(value, 0, 1), text) for label, value, text in figures)


def _alike(quality: AnyQuality) -> tuple[tuple[str, float], ...]:
    """Figures up to 1 that are no shares."""
    if isinstance(quality, EmbeddingQuality):
        return (("Mean cosine", quality.mean_cosine),)
    return (("Rank correlation", quality.spearman_rho),) if isinstance(quality, ScoreQuality) else ()


def _shares(quality: AnyQuality) -> tuple[Share, ...]:
    if isinstance(quality, ScoreQuality):
        return ()
    if isinstance(quality, Quality):
        return (
            ("Same first choice", quality.top1_agreement),
            ("Top 5 in common", quality.top5_agreement),
            ("Top 10 in common", quality.top10_agreement),
            ("Same greedy text", quality.greedy_agreement),
        )
    if isinstance(quality, EmbeddingQuality):
        return (("Same neighbours", quality.neighbour_overlap),)
    if isinstance(quality, TranscriptQuality):
        right = max(0.0, 1.0 - quality.token_error_rate)
        return (
            ("Tokens as before", right),
            ("Equal transcripts", quality.equal_transcripts),
            ("Same first choice", quality.top1_agreement),
        )
    if isinstance(quality, LabelQuality):
        return (
            ("Labels in common", quality.common_labels),
            ("Same decisions", quality.decision_agreement),
            ("Equal items", quality.equal_items),
        )
    return (("Same first choice", quality.top1_agreement), ("Top 5 in common", quality.top5_agreement))


def _text_table(quality: Quality) -> Table:
    rows: tuple[Cells, ...] = (
        (
            "Perplexity",
            fixed(quality.base_ppl, 3),
            fixed(quality.pruned_ppl, 3),
            f"× {fixed(quality.ppl_ratio, 3)}",
            "how many next tokens the model hesitates between; lower is better",
        ),
        (
            "Loss (nats per token)",
            fixed(quality.base_loss_nats, 4),
            fixed(quality.pruned_loss_nats, 4),
            _difference(quality.base_loss_nats, quality.pruned_loss_nats),
            "the surprise per token, the logarithm of perplexity; lower is better",
        ),
        (
            "KL divergence (nats per token)",
            "",
            "",
            fixed(quality.kl_nats, 4),
            "how far the pruned prediction is from the unpruned one; 0 is equal",
        ),
        *(
            (f"Top-{k} agreement", "", "", percent(share), phrase)
            for k, share, phrase in (
                (1, quality.top1_agreement, "how often both put the same token first"),
                (5, quality.top5_agreement, "how much the five likeliest tokens have in common"),
                (10, quality.top10_agreement, "how much the ten likeliest tokens have in common"),
            )
        ),
        (
            "Greedy agreement",
            "",
            "",
            percent(quality.greedy_agreement),
            f"how much of {count(quality.greedy_tokens)} freely generated tokens is the same",
        ),
    )
    columns = (
        Column("Measure"),
        Column("Unpruned", "number"),
        Column("Pruned", "number"),
        Column("Result", "number"),
        Column("In plain words"),
    )
    return Table("Quality on the same text", columns, rows)


def _difference(before: float, after: float) -> str:
    text = fixed(after - before, 4)
    return f"+{text}" if after > before else text
