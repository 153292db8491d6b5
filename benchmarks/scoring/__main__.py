"""``python -m benchmarks.scoring``: scoring against reading and against the direct product, at real shapes.

Writes synthetic checkpoints (query and key weights and a config) below ``--folder`` unless they are there: 4.2 GB for
the 13B shape, 4.8 GB for 32 of the 80 layers of the 70B shape. Everything is measured in one process, in turns, from
the page cache; other work on the machine moves single figures, so best and median are kept. Ratios are of bests, but
for those to the direct product: it is timed a layer at a time, and forty layers are not forty times the luckiest one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.scoring.checkpoints import SHAPES, write
from benchmarks.scoring.measuring import measure
from gatenorm_export.processor import cores, device_name
from gatenorm_export.records import tool_versions
from gatenorm_export.scoring.devices import pick_device

_CUTS = {"13b": (8, 16), "70b": (6, 12)}


def main() -> int:
    """Measure and write the results file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), action="append", help="one shape only; may be given again")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gatenorm-scoring")
    parser.add_argument("--repeat", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument("--direct-layers", type=int, default=3, help="layers of the direct product (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scoring.json"))
    args = parser.parse_args()
    gpu = pick_device("auto")
    result: dict[str, object] = {
        "command": "python -m benchmarks.scoring " + " ".join(sys.argv[1:]),
        "machine": {
            "cpu": device_name(),
            "cores": cores(),
            "gpu": gpu.words if gpu else None,
            "system": platform.platform(),
        },
        "versions": tool_versions() | {"python": platform.python_version(), "blas": _blas()},
        "shapes": {},
    }
    busy = [os.getloadavg()[0]]
    rows: dict[str, object] = {}
    for name in args.shape or sorted(SHAPES):
        shape, folder = SHAPES[name], args.folder / name
        if not (folder / "config.json").is_file():
            print(f"{name}: writing {shape.bytes_per_layer * shape.written / 1e9:.1f} GB to {folder}", flush=True)
            write(shape, folder)
        for device in ("cpu", gpu.name) if gpu else ("cpu",):
            row = measure(folder, _CUTS[name], repeat=args.repeat, direct_layers=args.direct_layers, device=device)
            row["layers_of_the_model"] = shape.n_layers
            rows[name if device == "cpu" else f"{name} on {device}"] = row
            print(
                f"{name} on {device}: {json.dumps(row['ratios'])} certified {json.dumps(row['certified'])}", flush=True
            )
    # The benchmark itself keeps both cores busy: far more than their number says that others did, too.
    result["load_average_before_and_after"] = [round(one, 1) for one in (*busy, os.getloadavg()[0])]
    result["shapes"] = rows
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {args.json}")
    return 0


def _blas() -> str:
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{built['name']} {built['version']}"


if __name__ == "__main__":
    sys.exit(main())
