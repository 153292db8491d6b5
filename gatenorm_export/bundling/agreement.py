"""Where the files of a bundle and its manifest say different things of one model; nothing is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatenorm_export.bundling.contradictions import contradiction
from gatenorm_export.bundling.decoding import decoding_of
from gatenorm_export.bundling.interface import GraphInterface
from gatenorm_export.bundling.opening import Bundle
from gatenorm_export.errors import InputError
from gatenorm_export.genai_config import GENAI_CONFIG
from gatenorm_export.model_configs import CONFIG, ModelConfigs
from gatenorm_export.records import BundleManifest, Convention, Decoding, ExportedGraph, PrunedGraph

_DECODING = {
    "vocab_size": "vocabulary",
    "max_positions": "longest context",
    "bos_token_id": "token that begins a sequence",
    "eos_token_ids": "tokens that end a sequence",
    "pad_token_id": "token for padding",
}
_SPEECH = {"input_features", "encoder_hidden_states"}


def disagreement(bundle: Bundle, found: GraphInterface, configs: ModelConfigs) -> str | None:
    """The first thing that two parts of a bundle tell differently; ``found`` is its graph, ``configs`` its own.

    The graph's record must tell the manifest's origin, the configs its decoding and its number of layers, and genai's
    description the graph's caches.
    """
    manifest = bundle.manifest
    try:
        record = bundle.record()
    except InputError as error:
        return str(error)
    return (
        _of_record(manifest, record)
        or _of_task(manifest, found)
        or _of_decoding(manifest, found, configs)
        or (_of_layers(manifest, configs) if record is not None and record.model is not None else None)
        or _of_genai(manifest, configs.genai)
    )


def first_untruth(bundle: Bundle, found: GraphInterface, configs: ModelConfigs) -> str | None:
    """What a bundle that is there says wrongly of its graph, or tells differently in two of its parts."""
    return contradiction(bundle.manifest, found) or disagreement(bundle, found, configs)


def check_agreement(source: Path, bundle: Bundle, found: GraphInterface) -> None:
    """Make sure of a new bundle that `verify` will not find its parts to be of two models.

    Raises:
        InputError: some tell different things; the text names ``source``, which they came from.
    """
    if bundle.manifest.graph is None:
        return
    finding = disagreement(bundle, found, bundle.configs())
    if finding is not None:
        raise InputError(f"{source}: what lies with the graph is not all of one model: {finding}")


def _of_record(manifest: BundleManifest, record: ExportedGraph | PrunedGraph | None) -> str | None:
    pruned = record if isinstance(record, PrunedGraph) else None
    spec = record.model if record is not None else None
    model = manifest.model
    digests = {file.sha256 for file in record.files if file.name == record.graph} if record is not None else set()
    if digests - {manifest.graph_sha256}:
        return "the graph is not that of its record"
    for what, told, recorded in (
        ("parent_sha256", manifest.parent_sha256, pruned.parent_sha256 if pruned is not None else None),
        ("plan_sha256", manifest.plan_sha256, pruned.plan_sha256 if pruned is not None else None),
        ("kv_names", manifest.kv_names, pruned.kv_names if pruned is not None else "dense"),
        ("model digest", model and model.digest, spec and spec.digest),
        ("architecture", model and model.architecture, spec and spec.architecture),
        ("convention", manifest.convention, record.convention if record is not None else Convention()),
    ):
        if told != recorded:
            return f"the manifest's {what} is not that of the graph's record"
    return None


def _of_task(manifest: BundleManifest, found: GraphInterface) -> str | None:
    """What the graph takes tells speech and images from tokens; a cache of its own is a decoder's."""
    inputs = {spec.name for spec in found.graph.inputs}
    seen = "speech" if inputs & _SPEECH else "vision" if "pixel_values" in inputs else "decoder" if found.caches else ""
    if manifest.task != seen and (seen or manifest.task in {"speech", "vision"}):
        return f"the manifest's task is {manifest.task}, and the graph is of another"
    return None


def _of_decoding(manifest: BundleManifest, found: GraphInterface, configs: ModelConfigs) -> str | None:
    """Lengths and tokens, which were read off graph and configs."""
    told = manifest.decoding
    if manifest.task != "decoder":
        return "the manifest tells how to step what is no decoder" if told is not None else None
    # genai's description was either there before, and was read too, or was written from what is told here.
    known = [decoding_of(found, read) for read in (configs, dataclasses.replace(configs, genai={}))]
    right = [decoding for decoding in known if isinstance(decoding, Decoding)]
    if told is None:
        return (
            "the manifest does not tell how the graph is stepped, and it can be" if len(right) == len(known) else None
        )
    if not right:
        return f"the manifest tells how the graph is stepped, but {known[0]}"
    for field, what in _DECODING.items():
        value = getattr(told, field)
        if value not in [getattr(decoding, field) for decoding in right]:
            shown = f" of {value:,}" if isinstance(value, int) else ""
            verb = "are" if field == "eos_token_ids" else "is"
            return f"the manifest's {what}{shown} {verb} not what graph and configs tell"
    return None


def _of_layers(manifest: BundleManifest, configs: ModelConfigs) -> str | None:
    """The config is the unpruned model's, whose layers the manifest counts."""
    counted = configs.counted_layers
    if manifest.task == "decoder" and counted is not None and counted != manifest.n_layers:
        return f"{CONFIG} counts {counted:,} layers, the manifest {manifest.n_layers:,}"
    return None


def _of_genai(manifest: BundleManifest, genai: Mapping[str, Any]) -> str | None:
    """genai's plain caches are one key and one value [batch, heads, past, size] for each layer."""
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    caches = manifest.decoding.caches if manifest.decoding is not None else ()
    keys = [cache for cache in caches if cache.role == "key" and len(cache.shape) == 4]
    # Layers without a cache of this kind are counted in other ways.
    if not isinstance(decoder, dict) or not keys or decoder.get("layer_types") or decoder.get("state_groups"):
        return None
    heads, size = keys[0].shape[1], keys[0].shape[3]
    for name, right in (
        ("num_key_value_heads", (heads,)),
        ("head_size", (size,)),
        ("num_hidden_layers", (len(keys), manifest.n_layers)),
    ):
        value, known = decoder.get(name), all(isinstance(length, int) for length in right)
        if value is not None and known and value not in right:
            return f"{GENAI_CONFIG} tells another {name} than the graph's caches"
    return None
