"""A recovery in a sentence or two: whether it helped, and where."""

from __future__ import annotations

from gatenorm_export.records import RecoveryQuality


def verdict(qualities: tuple[RecoveryQuality, ...], best_step: int, steps: int) -> str:
    """Whether it helped, in a sentence or two."""
    if best_step == 0:
        return (
            "Recovery did not help: at no step was the held-out loss below the pruned model's, so the pruned model "
            "itself was kept. Try a smaller --learning-rate or more text."
        )
    unseen = [quality for quality in qualities if not quality.held_out]
    parts = [_sentence(quality) + _against(quality) for quality in unseen]
    if best_step < steps:
        parts.append(f"The held-out loss was lowest at step {best_step} of {steps}; that state was kept.")
    if all(quality.recovered_ppl >= quality.pruned_ppl for quality in unseen):
        parts.append("Recovery did not help on text of another kind.")
    elif any(quality.recovered_ppl < quality.base_ppl < quality.pruned_ppl for quality in qualities):
        parts.append(
            "Where perplexity is below the unpruned model's it has learned the text itself, which is no recovery; KL "
            "to the unpruned model tells what is."
        )
    return " ".join(parts)


def _sentence(quality: RecoveryQuality) -> str:
    change = f"{quality.pruned_ppl:.2f} -> {quality.recovered_ppl:.2f}, unpruned {quality.base_ppl:.2f}"
    if quality.recovered_ppl >= quality.pruned_ppl:
        return f"On {quality.text} recovery made perplexity no better ({change})."
    if quality.recovered_share is None:
        return f"On {quality.text} pruning had cost nothing ({change})."
    return f"On {quality.text} recovery gave back {quality.recovered_share:.0%} of the loss pruning added ({change})."


def _against(quality: RecoveryQuality) -> str:
    if quality.repaired_ppl is None:
        return ""
    nearer = "nearer than" if quality.recovered_ppl < quality.repaired_ppl else "no nearer than"
    return f" That is {nearer} the closed-form repair of the same layers, which stands at {quality.repaired_ppl:.2f}."
