"""Times of scoring, of reading the same bytes, and of the direct product, taken in turns in one process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from gatenorm_export.records import LayerScores
from gatenorm_export.scoring import ScoreRequest, score_model
from gatenorm_export.scoring.bfloat16_products import BFLOAT16, bfloat16_products
from gatenorm_export.scoring.weights import TowerWeights, open_towers
from gatenorm_export.sources import resolve_model

_COMMAND = "import sys; from gatenorm_export.cli.main import main; sys.exit(main())"


@dataclass
class Times:
    """Seconds of something that was repeated, by the clock and of all cores together."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def take(self, work: Callable[[], object]) -> object:
        """Run and time ``work``."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)
        return result

    @property
    def best(self) -> float:
        """The least wall time: what other work on the machine disturbed least."""
        return min(self.wall_s)

    @property
    def median(self) -> float:
        """The median wall time: what a stack of layers takes of each, some of them disturbed and some lucky."""
        return statistics.median(self.wall_s)

    def to_object(self, scale: float = 1.0) -> dict[str, object]:
        """For the results file; ``scale`` times what was measured stands for the whole."""
        return {
            "best_s": round(self.best * scale, 4),
            "median_s": round(self.median * scale, 4),
            "best_cpu_s": round(min(self.cpu_s) * scale, 4),
            "runs_s": [round(one * scale, 4) for one in self.wall_s],
        }


@dataclass(frozen=True)
class Place:
    """Where the query and key bytes of a checkpoint lie."""

    path: Path
    offset: int
    length: int


def places(folder: Path) -> list[Place]:
    """Every query and key tensor of a checkpoint of safetensors, in the order of layers."""
    import json

    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        found += [Place(path, 8 + length + begin, end - begin) for begin, end in sorted(spans)]
    return found


def read(spots: list[Place], *, threads: int, digest: bool = False) -> int:
    """Read all bytes into one buffer a thread, again and again the same memory; the number of bytes."""
    longest = max(spot.length for spot in spots)

    def share(number: int) -> int:
        buffer, total = np.empty(longest, np.uint8), 0
        for spot in spots[number::threads]:
            with spot.path.open("rb", buffering=0) as file:
                file.seek(spot.offset)
                view = buffer.data[: spot.length]
                done = 0
                while done < spot.length:
                    done += file.readinto(view[done:])
            if digest:
                xxhash.xxh3_128(view).digest()
            total += spot.length
        return total

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(share, range(threads)))


def direct_product(weights: TowerWeights, number: int) -> float:
    """||Wq^T Wk||_F of a layer as one would write it down: float32, key heads repeated, the whole gate matrix."""
    loaded = weights.load(weights.tower.layers[number])
    query, key = loaded.query.astype(np.float32), loaded.key.astype(np.float32)
    heads = key.reshape(-1, weights.tower.head_dim, key.shape[1])
    key = heads.repeat(len(query) // len(key), axis=0).reshape(query.shape)
    return float(np.linalg.norm(query.T @ key))


def sgemm_rate(size: int = 4096) -> float:
    """Float operations a second of numpy's float32 product on all cores: the roof."""
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    times = Times()
    for _ in range(3):
        times.take(lambda: a @ a)
    return 2 * size**3 / times.best


def bfloat16_rate(size: int = 4096) -> float | None:
    """The same of bfloat16 products on all cores; None where the CPU or oneDNN has none."""
    products = bfloat16_products()
    if products is None:
        return None
    a, out = np.ones((size, size), BFLOAT16), np.empty((size, size), np.float32)
    times = Times()
    for _ in range(3):
        times.take(lambda: products.multiply(a, a, out))
    return 2 * size**3 / times.best


def lowest(scores: LayerScores, n: int) -> set[int]:
    """The layers that a plan of ``n`` drops."""
    ranked = sorted(scores.layers, key=lambda one: (one.score, -one.layer))
    return {one.layer for one in ranked[:n]}


def peak_memory_bytes(folder: Path, cuts: tuple[int, ...]) -> int:
    """Peak resident memory of a fresh process that scores.

    Linux's VmHWM: ``ru_maxrss`` of a child begins with what its parent had when it was started.
    """
    code = (
        "import pathlib, re\nfrom gatenorm_export.scoring import ScoreRequest, score_model\n"
        "from gatenorm_export.sources import resolve_model\n"
        f"score_model(resolve_model({str(folder)!r}, whole=False), ScoreRequest(cuts={cuts!r}))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


def command_seconds(folder: Path, drop: int) -> float:
    """Wall time of the whole command, imports and all."""
    command = [sys.executable, "-c", _COMMAND, "score", str(folder), "--drop", str(drop), "--quiet"]
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started


def measure(
    folder: Path, cuts: tuple[int, ...], *, repeat: int, direct_layers: int, device: str = "cpu"
) -> dict[str, object]:
    """All figures of one checkpoint: reading, scoring and the direct product in turns, ``repeat`` times."""
    spots = places(folder)
    n_bytes = read(spots, threads=1)
    spec = resolve_model(str(folder), whole=False)
    request = ScoreRequest(cuts=cuts, device=device)
    reading, both, digesting, scoring, direct, exact = (Times() for _ in range(6))
    sketched: LayerScores | None = None
    with open_towers(spec) as towers:
        n_layers = len(towers[0].tower.layers)
        # Layers that are measured stand for all: they have the same shape.
        measured = [round(step * (n_layers - 1) / max(direct_layers - 1, 1)) for step in range(direct_layers)]
        for turn in range(repeat):
            reading.take(lambda: read(spots, threads=1))
            both.take(lambda: read(spots, threads=2))
            digesting.take(lambda: read(spots, threads=1, digest=True))
            sketched = scoring.take(lambda: score_model(spec, request))  # type: ignore[assignment]
            direct.take(lambda turn=turn: direct_product(towers[0], measured[turn % direct_layers]))  # type: ignore[misc]
    assert sketched is not None
    full = exact.take(lambda: score_model(spec, ScoreRequest(cuts=cuts, exact=True, device=device)))
    assert isinstance(full, LayerScores)
    rate, bandwidth = sgemm_rate(), n_bytes / both.best
    return {
        "bytes": n_bytes,
        "layers": n_layers,
        "read_one_thread": reading.to_object(),
        "read_two_threads": both.to_object(),
        "read_and_digest_one_thread": digesting.to_object(),
        "certified": scoring.to_object(),
        "certain": {str(cut.n): cut.certain for cut in sketched.cuts},
        "as_exact": {str(cut.n): lowest(sketched, cut.n) == lowest(full, cut.n) for cut in sketched.cuts},
        "exact": exact.to_object(),
        "direct_product_per_layer": direct.to_object(),
        "direct_product_layers_measured": sorted({measured[turn % direct_layers] for turn in range(repeat)}),
        "direct_product": direct.to_object(n_layers),
        "ratios": {
            "certified_to_read_one_thread": round(scoring.best / reading.best, 2),
            "certified_to_read_two_threads": round(scoring.best / both.best, 2),
            "direct_to_certified": round(direct.median * n_layers / scoring.median, 1),
            "direct_to_certified_bests": round(direct.best * n_layers / scoring.best, 1),
            "direct_to_certified_cpu": round(min(direct.cpu_s) * n_layers / min(scoring.cpu_s), 1),
            "exact_to_read_one_thread": round(exact.best / reading.best, 2),
            "direct_to_exact": round(direct.best * n_layers / exact.best, 1),
        },
        "peak_memory_bytes": peak_memory_bytes(folder, cuts),
        "command_s": round(command_seconds(folder, cuts[0]), 3),
        "roofline": {
            "read_bytes_per_s": round(bandwidth),
            "sgemm_flops_per_s": round(rate),
            "bfloat16_flops_per_s": bfloat16_rate(),
        },
        "convention": sketched.convention.model_dump(mode="json"),
        "exact_arithmetic": full.convention.arithmetic,
    }
