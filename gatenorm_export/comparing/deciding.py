"""What decides the figures of a comparison, so that those of an interrupted one are taken up by the same one only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatenorm_export.artifacts import sha256_of
from gatenorm_export.genai_config import GENAI_CONFIG
from gatenorm_export.graphs import CONFIG_FILES, TOKENIZER_FILES, data_files
from gatenorm_export.kinds import SPEECH_GRAPHS
from gatenorm_export.processor import device_name

if TYPE_CHECKING:
    from gatenorm_export.comparing.engine_pair import EnginePair
    from gatenorm_export.comparing.request import ComparisonRequest
    from gatenorm_export.graph_pair import GraphPair
    from gatenorm_export.records import ModelSpec


def figures_key(
    pair: GraphPair, spec: ModelSpec | None, request: ComparisonRequest, engines: EnginePair | None
) -> list[Any]:
    """Everything that decides a figure, in JSON types. Limits do not: they are held against the figures.

    Paths are in it, because reasons and names of texts are told by them; so is the machine, which latencies are of.

    Raises:
        InputError: a file of a graph cannot be read.
    """
    asked = {name: value for name, value in request.decides().items() if name != "limits"}
    names = [str(path) for path in (pair.base, pair.pruned, request.text, request.images, request.audio)]
    graphs = [graph_digest(graph) for graph in (pair.base, pair.pruned, *_other_part(pair.base))]
    beside = [
        [name, sha256_of(pair.base.parent / name)]
        for name in (*TOKENIZER_FILES, *CONFIG_FILES, GENAI_CONFIG)
        if (pair.base.parent / name).is_file()
    ]
    repair = pair.repair.model_dump_json() if pair.repair is not None else None
    went = [*pair.judged, pair.dropped, pair.cross, repair]
    return [asked, names, graphs, beside, went, spec.digest if spec is not None else None, device_name(), *_of(engines)]


def graph_digest(graph: Path) -> str:
    """sha256 over the names and digests of the graph's file and of the files that its tensors lie in.

    Raises:
        InputError: one of them is damaged or missing.
    """
    data = data_files(graph)
    if not data:
        return sha256_of(graph)
    lines = [f"{path.name} {sha256_of(path)}\n" for path in (graph, *data)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _other_part(base: Path) -> list[Path]:
    """The other graph of a speech model, which transcripts are made with."""
    if base.name not in SPEECH_GRAPHS.values():
        return []
    others = (base.with_name(name) for name in SPEECH_GRAPHS.values() if name != base.name)
    return [other for other in others if other.is_file()]


def _of(engines: EnginePair | None) -> list[Any]:
    if engines is None:
        return []
    from gatenorm_export.building import find_gpu

    return [str(find_gpu()), [[record.engine, record.sha256] for record in engines.records]]
