"""Whether a measure of what attention does ranks the layers as Gate-Norm does. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gatenorm_export.errors import RefusedError
from gatenorm_export.records.correlation import Agreement, Measure
from gatenorm_export.scoring.norms import default_cut
from gatenorm_export.scoring.ranks import lowest, removal_order, spearman, two_digits

WORDS: dict[Measure, str] = {"norm_ratio": "the norm ratio", "cosine": "cosine importance"}
APART = 4
"""Places that differ by more than this part of the layers are apart. Of two random rankings of many layers 9 in 16
are, so that a ranking that says nothing about the other counts as disagreeing on more than half of the layers."""


def cut_of(n_layers: int, asked: int | None, name: str) -> int:
    """The number of layers whose choice is compared: what was asked for, else a quarter of the layers.

    Raises:
        RefusedError: there are not so many, or none is asked for.
    """
    if asked is None:
        return default_cut(n_layers)
    if not 1 <= asked <= n_layers:
        raise RefusedError(f"--drop {asked}: {name} has {n_layers} attention sublayers; give a number from 1 to that")
    return asked


def agreement(measure: Measure, gate: Mapping[int, float], measured: Mapping[int, float], cut: int) -> Agreement:
    """Compare two rankings of the same layers; both map a layer to its value, and the lowest go first.

    A measure disagrees with Gate-Norm on more than half of the layers in either of two senses: of the ``cut`` layers
    that Gate-Norm would remove it would keep more than half; or more than half of all layers lie apart, their places in
    the two rankings differing by more than a quarter of the number of layers.
    """
    layers = sorted(gate)
    places = [{layer: place for place, layer in enumerate(removal_order(values))} for values in (gate, measured)]
    apart = tuple(layer for layer in layers if APART * abs(places[0][layer] - places[1][layer]) > len(layers))
    ours, theirs = lowest(gate, cut), lowest(measured, cut)
    shared = tuple(layer for layer in ours if layer in theirs)
    found = Agreement(
        measure=measure,
        spearman_rho=spearman([gate[layer] for layer in layers], [measured[layer] for layer in layers]),
        lowest=theirs,
        shared=shared,
        spared=tuple(layer for layer in ours if layer not in theirs),
        by_chance=cut * cut / len(layers),
        apart=apart,
        disagrees=2 * (cut - len(shared)) > cut or 2 * len(apart) > len(layers),
        sentence="",
    )
    return found.model_copy(update={"sentence": _sentence(found, cut, len(layers))})


def warning_of(agreements: Sequence[Agreement]) -> str | None:
    """The failure signature of the paper in words, with the measures that show it; None where none does."""
    against = [found for found in agreements if found.disagrees]
    if not against:
        return None
    words = " and ".join(WORDS[found.measure] for found in against)
    if any(_keeps_most(found) for found in against):
        which = "layers that would go"
        means = "what Gate-Norm would remove is mostly not what these passes show to be mute"
    else:
        which = "layers"
        means = "where Gate-Norm ranks a layer is mostly not where these passes do"
    return (
        f"Gate-Norm and {words} disagree on more than half of the {which}, the sign by which the method fails: "
        f"{means}. Do not trust scores alone here; measure what a removal costs, with --guard for decoders and "
        "`gatenorm compare` for every model."
    )


def _keeps_most(found: Agreement) -> bool:
    return 2 * len(found.spared) > len(found.lowest)


def _sentence(found: Agreement, cut: int, n_layers: int) -> str:
    rho = "not defined" if found.spearman_rho is None else two_digits(found.spearman_rho)
    word = WORDS[found.measure]
    apart = []
    if _keeps_most(found):
        apart.append(f"on more than half of the {cut} lowest" if cut > 1 else "on the layer that would go")
    if 2 * len(found.apart) > n_layers:
        apart.append("on more than half of all layers")
    verdict = f"disagree {' and '.join(apart)}" if apart else "agree on at least half of the layers"
    if cut > 1:
        lowest_words = f"share {len(found.shared)} of the {cut} lowest layers ({found.by_chance:.1f} by chance)"
    else:
        lowest_words = "have the same lowest layer" if found.shared else "have different lowest layers"
    return (
        f"{word[0].upper()}{word[1:]} and Gate-Norm {lowest_words}, Spearman {rho}, "
        f"and place {len(found.apart)} of {n_layers} layers more than a quarter of the ranking apart: they "
        f"{verdict}."
    )
