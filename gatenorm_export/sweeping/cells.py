"""The parts of a sweep that can be done anywhere: an order that needs the model, and the figures of one cell."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gatenorm_export.artifacts import atomic_file
from gatenorm_export.calibrating.corpus import Corpus
from gatenorm_export.errors import InputError, RefusedError
from gatenorm_export.executing import Call, InputFile, Task, input_file
from gatenorm_export.records import SweepFigures
from gatenorm_export.repairs import Repair, parse_repair
from gatenorm_export.sweeping.measuring import Bench
from gatenorm_export.sweeping.ranking import cosine_order, guard_order

TOKENS_NAME = "tokens.safetensors"

_bench: tuple[tuple[str, ...], Bench] | None = None
"""The graph that this process cut last. Cutting reads all of it, and the tasks of one sweep share one graph."""


def save_tokens(path: Path, windows: Any, corpus: Corpus) -> InputFile:
    """Write the tokens that a sweep judges and fits on as an input of its tasks."""
    from safetensors.numpy import save_file

    with atomic_file(path) as temporary:
        arrays = {"windows": windows, "fitted": corpus.fitted, "measured": corpus.measured}
        save_file({name: array.copy() for name, array in arrays.items()}, temporary)
    return input_file(path, TOKENS_NAME)


def cell_task(
    name: str,
    shared: tuple[InputFile, ...],
    corpus_name: str,
    layers: tuple[int, ...],
    repair: Repair,
    *,
    latency: bool,
) -> Task:
    """The figures of one set of removed layers. ``shared`` are the graph's files, itself first, and the tokens."""
    arguments = {
        "graph": shared[0].name,
        "corpus": corpus_name,
        "layers": list(layers),
        "repair": str(repair),
        "latency": latency,
    }
    return Task(name, f"{__name__}:measure_cell", arguments, shared)


def order_task(
    name: str, shared: tuple[InputFile, ...], corpus_name: str, kind: str, count: int, repair: Repair, cache: Path
) -> Task:
    """An order by ``cosine`` or ``guard``. ``cache`` is where a search that is interrupted goes on from."""
    arguments = {
        "graph": shared[0].name,
        "corpus": corpus_name,
        "kind": kind,
        "count": count,
        "repair": str(repair),
        "cache": str(cache.absolute()),
    }
    return Task(name, f"{__name__}:find_order", arguments, shared)


def measure_cell(call: Call) -> dict[str, Any]:
    """Quality on the graph cut into layers, latency, cache and parameters on one that is really pruned.

    A cell that cannot be measured has a ``reason`` instead of figures.

    Raises:
        RefusedError: the graph itself cannot be judged.
        OutputError: the pruned graph cannot be written.
    """
    layers, repair = tuple(call.arguments["layers"]), parse_repair(call.arguments["repair"])
    with call.sharing():
        bench = _opened(call)
    found: dict[str, Any] = {"base_ppl": bench.base_ppl}
    try:
        with call.sharing():
            started = time.monotonic()
            cost, repaired = bench.quality(layers, repair)
            record, pruned = bench.pruned(layers, repaired, call.out)
            seconds = time.monotonic() - started
        timed = None
        if call.arguments["latency"]:
            with call.alone():
                # Waiting for the others is not measuring.
                started = time.monotonic()
                timed = bench.latency(pruned)
                seconds += time.monotonic() - started
    except (RefusedError, InputError) as error:
        return found | {"reason": str(error)}
    finally:
        # Not an artifact: a sweep keeps figures, not graphs.
        shutil.rmtree(call.out, ignore_errors=True)
    before, after = record.before.kv_bytes_per_token, record.after.kv_bytes_per_token
    figures = SweepFigures(
        ppl=cost.ppl,
        ppl_ratio=cost.ppl / bench.base_ppl,
        kl_nats=cost.kl_nats,
        kv_bytes_per_token=after,
        kv_share=after / before if before else None,
        n_parameters=record.after.n_parameters,
        n_repair_parameters=record.repair.n_parameters if record.repair is not None else 0,
        latency=timed,
        seconds=seconds,
    )
    return found | {"figures": figures.model_dump(mode="json")}


def find_order(call: Call) -> dict[str, Any]:
    """An order that the model decides. A guarded search that fails has a ``reason``; without cosine nothing goes on.

    Raises:
        RefusedError: the graph itself cannot be judged.
    """
    with call.sharing():
        bench = _opened(call)
        found: dict[str, Any] = {"base_ppl": bench.base_ppl}
        if call.arguments["kind"] == "cosine":
            order = cosine_order(bench.model, bench.corpus.fitted, progress=call.progress)
            return found | {"order": order.model_dump(mode="json")}
        cache = Path(call.arguments["cache"])
        # On a machine that does not see the sweep's folder there is nothing to go on from, and nobody to clean up.
        seen = cache.parent.parent.is_dir()
        repair, count = parse_repair(call.arguments["repair"]), call.arguments["count"]
        try:
            order = guard_order(
                bench.model, bench.corpus, count, repair, cache=cache if seen else None, progress=call.progress
            )
        except (RefusedError, InputError) as error:
            return found | {"reason": str(error)}
        return found | {"order": order.model_dump(mode="json")}


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """Let go of the graph that tasks in this process have cut when the block ends."""
    global _bench
    try:
        yield
    finally:
        _bench = None


def _opened(call: Call) -> Bench:
    global _bench
    graph, tokens = call.inputs[call.arguments["graph"]], call.inputs[TOKENS_NAME]
    # Inputs were held against their digests just now; a path of another sweep has other tokens or another graph.
    key = tuple(sorted(f"{name} {path} {path.stat().st_mtime_ns}" for name, path in call.inputs.items()))
    if _bench is None or _bench[0] != key:
        # First, since two graphs may not fit into memory.
        _bench = None
        from safetensors.numpy import load_file

        arrays = load_file(tokens)
        corpus = Corpus(arrays["fitted"], arrays["measured"], call.arguments["corpus"])
        _bench = (key, Bench(graph, arrays["windows"], corpus, call.progress))
    return _bench[1]
