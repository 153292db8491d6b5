"""Sensitivity to the norm in front of attention: its weight folded into the query and key weights.

A pre-norm block computes q = Wq (g * n(x)), where n divides by the length of x (and, in LayerNorm, first takes the mean
away) and g is the norm's weight; so Wq diag(g) reads n(x) directly. Folding changes nothing that the model computes and
yet another score, since ||Wq Wk^T||_F weighs every input channel alike: where the two rankings part, the norm carries
part of what the score is about. Norms of single heads (Qwen3, OLMo 2) work on q and k and are not folded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from gatenorm_export.architectures.tower import Tower
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.records.sensitivity import RankingShift
from gatenorm_export.scoring.ranks import lowest, removal_order, spearman, two_digits


def gain_of(weight: np.ndarray, norm_offset: float) -> np.ndarray:
    """What the norm multiplies by, [d_model] float64: its stored weight, plus 1 in families that store it less 1."""
    return np.asarray(weight, np.float64) + norm_offset


def folded(query: np.ndarray, key: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wq diag(g) and Wk diag(g).

    ``query`` is [n_heads * head_dim, d_model], ``key`` [n_kv_heads * head_dim, d_model], ``gain`` [d_model]; results
    have the shapes of the inputs: in float32 for weights of two bytes or less, whose product with a gain of two bytes
    fits there without rounding, else in float64.

    Raises:
        ValueError: the gain is no vector of d_model, or holds NaN or infinity.
    """
    if gain.shape != (query.shape[1],) or gain.shape != (key.shape[1],):
        raise ValueError(f"a norm weight of {list(gain.shape)} does not fit query {query.shape} and key {key.shape}")
    if not np.isfinite(gain).all():
        raise ValueError("the norm weight holds NaN or infinity")
    return _scaled(query, gain), _scaled(key, gain)


def require_norms(tower: Tower, where: str, *, graph: bool = False) -> None:
    """Check that every layer of a tower has a norm weight to fold, but those whose stream is normed already.

    ``where`` names the checkpoint; ``graph`` says that it is an ONNX graph.

    Raises:
        InputError: the family has one, and the checkpoint lacks it.
        RefusedError: there is none, or which it is cannot be known; the text says why.
    """
    without = [one.layer for one in tower.layers if one.norm is None and one.layer >= tower.normed_from]
    if not without:
        return
    if tower.norm is not None:
        raise InputError(
            f"{where}: tensor {tower.norm.format(layer=without[0])} is missing from the checkpoint; only --fold-norms "
            "needs it"
        )
    if graph:
        why = "of an ONNX graph queries and keys alone are read; score the checkpoint that it was exported from"
    elif tower.guessed is not None:
        why = "the family is not in gatenorm's table, and which norm stands before attention is not known; leave it out"
    elif tower.name == "cross":
        why = (
            "queries and keys of cross-attention stand behind two different norms, so there is no one weight to fold; "
            "name another tower with --tower"
        )
    elif len(without) < len(tower.layers):
        why = f"layer {without[0]} has no norm weight before attention, as other layers have; leave it out"
    else:
        why = (
            "no layer has a norm weight between the residual stream and attention (the norm stands behind attention, "
            "as in BERT and OLMo 2, or has no weight, as in OLMo 1); leave it out"
        )
    of = f", tower {tower.name}" if tower.name else ""
    raise RefusedError(f"{where}{of}: --fold-norms has nothing to fold: {why}")


def ranking_shift(
    plain: Mapping[int, float],
    folded: Mapping[int, float],
    *,
    n: int | None = None,
    protect: Collection[int] = (),
    tower: str = "",
) -> RankingShift:
    """How far the ranking of a tower moves when its scores become ``folded``; both map a layer to its score.

    ``n`` is the cut whose layers are compared, those to ``protect`` aside; where it is None, a quarter of the layers
    (see :func:`default_cut`).

    Raises:
        ValueError: the two are not of the same layers, or the cut is beyond them.
    """
    if set(plain) != set(folded) or not plain:
        raise ValueError("plain and folded scores are not of the same layers")
    n = default_cut(len(plain)) if n is None else n
    if not 0 <= n <= len(plain):
        raise ValueError(f"a cut of {n} is not among {len(plain)} layers")
    layers = sorted(plain)
    places = [{layer: place for place, layer in enumerate(removal_order(scores))} for scores in (plain, folded)]
    moves = {layer: abs(places[1][layer] - places[0][layer]) for layer in layers}
    moved = tuple(layer for layer in layers if moves[layer])
    most = max(moved, key=lambda layer: moves[layer], default=None)
    before, after = (
        lowest({layer: score for layer, score in scores.items() if layer not in protect}, n)
        for scores in (plain, folded)
    )
    rho = spearman([plain[layer] for layer in layers], [folded[layer] for layer in layers])
    shift = RankingShift(
        tower=tower,
        n_layers=len(layers),
        spearman_rho=rho,
        moved=moved,
        max_move=moves[most] if most is not None else 0,
        max_move_layer=most,
        n=n,
        plain=before,
        folded=after,
        overlap=len(set(before) & set(after)),
        sentence="",
    )
    return shift.model_copy(update={"sentence": _sentence(shift)})


def default_cut(n_layers: int) -> int:
    """The cut where none was asked for: a quarter of the layers, rounded down, at least one."""
    return max(n_layers // 4, 1)


def _sentence(shift: RankingShift) -> str:
    of = f" of {shift.tower}" if shift.tower else ""
    if not shift.moved:
        return f"Folding the norm weights in leaves the ranking{of} as it is."
    rho = (
        f"Spearman {two_digits(shift.spearman_rho)}"
        if shift.spearman_rho is not None
        else "no rank correlation is defined"
    )
    places = "place" if shift.max_move == 1 else "places"
    start = (
        f"Folding the norm weights in moves {len(shift.moved)} of {shift.n_layers} layers{of} in the ranking, "
        f"layer {shift.max_move_layer} farthest, by {shift.max_move} {places} ({rho}); "
    )
    if not shift.n:
        return start + "no layer was to go."
    if shift.overlap == shift.n:
        return start + ("the lowest stays." if shift.n == 1 else f"the {shift.n} lowest stay the same layers.")
    gone, come = _difference(shift.plain, shift.folded), _difference(shift.folded, shift.plain)
    if shift.n == 1:
        return start + f"the lowest becomes {come} in place of {gone}."
    verb = "stays" if shift.overlap == 1 else "stay"
    return start + f"{shift.overlap} of the {shift.n} lowest {verb} ({come} would go in place of {gone})."


def _difference(left: Sequence[int], right: Sequence[int]) -> str:
    return ", ".join(str(layer) for layer in left if layer not in right)


def _scaled(weight: np.ndarray, gain: np.ndarray) -> np.ndarray:
    dtype = np.float32 if weight.dtype.itemsize <= 2 else np.float64
    return np.asarray(weight.astype(dtype) * gain.astype(dtype))
