"""gatenorm and onnxsim's block pruning on the same graphs: what each can remove, whether it is right, time, memory.

    python -m benchmarks.versus_onnxsim build/matrix/optimum/llama-gqa/base/model.onnx [--json versus.json]

Each tool removes every attention sublayer that it can, in a process of its own; seconds are those of loading, removing
and saving, and the peak memory is that process's. onnxsim chooses blocks itself, by how little they change the stream,
and takes MLPs for blocks too. To ask it for attention and nothing else, it also gets the graph with all attention
exits at zero, where these blocks change nothing and come first. The result of each tool must answer as the graph does
whose exits of the removed layers were set to zero in the file (``benchmarks.attention_exits``).

onnxsim wants known shapes and a fused norm at each block's entry, so each graph is tried twice: as it is, and as
onnxsim's own simplifier leaves it for fixed input shapes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.attention_exits import Exits
from benchmarks.matrix.running import Runner, first_line
from gatenorm_export.processor import device_name
from gatenorm_export.records import tool_versions

# DESIGN.md's faithfulness: the largest difference over the range of the answers.
TOLERANCE = 1e-4
# In half precision the casts around operators that the CPU lacks round on their own on each side.
HALF_TOLERANCE = 2e-3
FLOAT16 = 10
# onnxsim has no way to say "all": it takes as many as it finds.
EVERY_BLOCK = 10_000
ONNXSIM = "onnxsim>=0.8"
NOTHING_REMOVED = {"error": None, "passed": None, "reason": "nothing was removed"}


def main() -> int:
    """Compare on every graph and print one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="+", type=Path, metavar="GRAPH")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there instead of to stdout")
    parser.add_argument("--child", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, default=EVERY_BLOCK, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(_in_child(args.child, args.graphs[0], args.output, args.blocks)))
        return 0
    problem = _missing_onnxsim()
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 4
    absent = [graph for graph in args.graphs if not graph.is_file()]
    if absent:
        print(f"error: {absent[0]}: no such file", file=sys.stderr)
        return 3
    result = {
        "schema": 1,
        "kind": "versus-onnxsim",
        "command": ["python", "-m", "benchmarks.versus_onnxsim", *sys.argv[1:]],
        "device": device_name(),
        "versions": {**tool_versions(), "onnxsim": importlib.metadata.version("onnxsim")},
        "graphs": [compare(graph) for graph in args.graphs],
    }
    text = json.dumps(result, indent=2) + "\n"
    if args.json:
        args.json.write_text(text)
    else:
        print(text, end="")
    return 0


def compare(graph: Path) -> dict[str, Any]:
    """Both tools on one graph as it is, and on what onnxsim's simplifier makes of it for fixed input shapes."""
    print(f"{graph} ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="gatenorm-versus-") as name:
        folder = Path(name)
        simplified = _child("simplify", graph, folder / "simplified.onnx")
        forms: dict[str, Any] = {"as exported": _compare_form(graph, folder / "exported")}
        if "error" in simplified:
            forms["simplified, fixed shapes"] = simplified
        else:
            forms["simplified, fixed shapes"] = _compare_form(folder / "simplified.onnx", folder / "fixed")
    return {"graph": str(graph), "forms": forms}


def _compare_form(graph: Path, folder: Path) -> dict[str, Any]:
    import onnx

    folder.mkdir()
    model = onnx.load(graph)
    exits = Exits(model)
    ours = _child("gatenorm", graph, folder / "gatenorm.onnx")
    if "error" not in ours:
        ours["faithfulness"] = _check(folder / "gatenorm.onnx", graph, ours["removed"], ours["found"], folder)
    theirs = _child("onnxsim", graph, folder / "onnxsim.onnx")
    if "error" not in theirs:
        left = Exits(onnx.load(folder / "onnxsim.onnx"))
        theirs["removed_attention"] = len(exits.layers) - len(left.layers)
        theirs["faithfulness"] = _check_onnxsim(graph, theirs["removed_attention"], folder)
    return {
        "attention_sublayers": len(exits.layers),
        "kv_cache": any("past" in value.name.lower() for value in model.graph.input),
        "nodes": len(model.graph.node),
        "gatenorm": ours,
        "onnxsim": theirs,
    }


def _check(pruned: Path, graph: Path, removed: list[int], found: int, folder: Path) -> dict[str, Any]:
    """The pruned graph against the one whose exits of the removed layers are zero."""
    import onnx

    if not removed:
        return NOTHING_REMOVED
    model = onnx.load(graph)
    exits = Exits(model)
    if len(exits.layers) != found:
        reason = f"no reference: {len(exits.layers)} attention exits found in the file, {found} sublayers in the graph"
        return {"error": None, "passed": None, "reason": reason}
    exits.silence(removed)
    silenced = folder / f"silenced-{pruned.name}"
    onnx.save(model, silenced)
    return _difference(pruned, silenced, graph, model)


def _check_onnxsim(graph: Path, count: int, folder: Path) -> dict[str, Any]:
    """As many blocks as it took attention from, from the graph in which all attention adds nothing."""
    import onnx

    if not count:
        return NOTHING_REMOVED
    model = onnx.load(graph)
    exits = Exits(model)
    exits.silence(range(len(exits.layers)))
    silenced, pruned = folder / "silenced.onnx", folder / "onnxsim-of-silenced.onnx"
    onnx.save(model, silenced)
    outcome = _child("onnxsim", silenced, pruned, blocks=count)
    if "error" in outcome:
        return {"error": None, "passed": False, "reason": outcome["error"]}
    return _difference(pruned, silenced, graph, model)


def _difference(pruned: Path, reference: Path, graph: Path, model: Any) -> dict[str, Any]:
    """The largest difference of any common output on one call (with a past, where there is a cache), over its range."""
    # onnxruntime's exceptions share no base class below Exception.
    try:
        feeds = Runner.load(graph, optimise=False).example(1)
        untouched, expected = (_answers(path, feeds) for path in (graph, reference))
    except Exception as failure:
        return {"error": None, "passed": None, "reason": f"the graph itself does not run here: {first_line(failure)}"}
    try:
        found = _answers(pruned, feeds)
    except Exception as failure:
        return {"error": None, "passed": False, "reason": first_line(failure)}
    half = any(tensor.data_type == FLOAT16 for tensor in model.graph.initializer)
    error, tolerance = _worst(found, expected), HALF_TOLERANCE if half else TOLERANCE
    return {
        "error": error,
        "tolerance": tolerance,
        "passed": error <= tolerance,
        # What the check must tell apart: the graph from which nothing was removed.
        "error_of_the_untouched_graph": _worst(untouched, expected),
    }


def _answers(graph: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    session = Runner.load(graph, optimise=False).session
    names = [value.name for value in session.get_outputs()]
    inputs = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, inputs), strict=True))


def _worst(found: dict[str, Any], expected: dict[str, Any]) -> float:
    import numpy as np

    worst = 0.0
    for name, array in found.items():
        wanted = expected[name].astype(np.float64)
        worst = max(worst, float(np.abs(array - wanted).max() / max(float(np.ptp(wanted)), 1e-9)))
    return worst


def _child(tool: str, graph: Path, output: Path, blocks: int = EVERY_BLOCK) -> dict[str, Any]:
    """Run one tool in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.versus_onnxsim", str(graph), "--child", tool]
    done = subprocess.run(
        [*command, "--output", str(output), "--blocks", str(blocks)], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"{tool} ended with exit code {done.returncode}: {last}"[:300]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _in_child(tool: str, graph: Path, output: Path, blocks: int) -> dict[str, Any]:
    try:
        return TOOLS[tool](graph, output, blocks)
    except Exception as error:
        # Whatever the other tool raises is its result on this graph, and the comparison goes on.
        return {"error": first_line(error)}


def _gatenorm(graph: Path, output: Path, blocks: int) -> dict[str, Any]:
    """All layers at once; where that is refused, one after the other as far as possible."""
    import onnx_ir as ir

    from graph_passes import SurgeryRefused, find_attention, remove_attention

    imports = _peak_memory()
    start = time.perf_counter()
    model = ir.load(graph)
    found = find_attention(model)
    steps = [list(found.layers)]
    removed: list[int] = []
    refusals: list[str] = []
    while steps:
        layers = steps.pop(0)
        try:
            remove_attention(model, layers, kv_names="keep")
            removed += layers
        except SurgeryRefused as refusal:
            if len(layers) > 1:
                steps = [[layer] for layer in layers]
            else:
                refusals.append(str(refusal))
    outside = any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())
    ir.save(model, output, external_data=f"{output.name}.data" if outside else None)
    seconds = time.perf_counter() - start
    return {
        "found": found.n_layers,
        "removed": removed,
        "removed_attention": len(removed),
        "refused": refusals + [str(reason) for reason in found.unmatched if reason.layer is not None],
        **_costs(seconds, imports),
    }


def _onnxsim(graph: Path, output: Path, blocks: int) -> dict[str, Any]:
    """Its block pruning, calibrated on one batch of valid inputs."""
    import onnx

    onnxsim = importlib.import_module("onnxsim")
    calibration = [Runner.load(graph, optimise=False).example(0)]
    imports = _peak_memory()
    start = time.perf_counter()
    pruned = onnxsim.apply_transformer_block_pruning(
        onnx.load(graph), calibration_data=calibration, num_blocks_to_drop=blocks
    )
    onnx.save(pruned, output)
    return _costs(time.perf_counter() - start, imports)


def _simplify(graph: Path, output: Path, blocks: int) -> dict[str, Any]:
    """Its simplifier for fixed input shapes, so that nothing in a block has to ask for a length."""
    import onnx

    onnxsim = importlib.import_module("onnxsim")
    shapes = {name: list(array.shape) for name, array in Runner.load(graph, optimise=False).example(0).items()}
    simplified, _ = onnxsim.simplify(onnx.load(graph), overwrite_input_shapes=shapes)
    onnx.save(simplified, output)
    return {}


def _costs(seconds: float, imports: int) -> dict[str, Any]:
    return {"seconds": seconds, "peak_memory_bytes": _peak_memory(), "peak_memory_after_imports_bytes": imports}


def _peak_memory() -> int:
    """Of this program alone: getrusage would count the parent's peak too, which survives fork and exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _missing_onnxsim() -> str | None:
    try:
        onnxsim = importlib.import_module("onnxsim")
    except ImportError as error:
        return f'this comparison needs onnxsim: pip install "{ONNXSIM}" ({error})'
    if not hasattr(onnxsim, "apply_transformer_block_pruning"):
        version = importlib.metadata.version("onnxsim")
        return f'onnxsim {version} has no block pruning: pip install "{ONNXSIM}"'
    return None


TOOLS: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {
    "gatenorm": _gatenorm,
    "onnxsim": _onnxsim,
    "simplify": _simplify,
}


if __name__ == "__main__":
    sys.exit(main())
