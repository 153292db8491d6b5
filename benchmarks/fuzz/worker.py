"""The process that runs cases: it answers one number with one verdict, and dies of what a case does to it."""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path

import benchmarks.fuzz.inputs as inputs
from benchmarks.fuzz.cases import make_case
from benchmarks.fuzz.judging import judge
from benchmarks.fuzz.sandbox import Sandbox, make_root
from benchmarks.fuzz.seeds import all_seeds


def serve(connection: Connection, run_seed: int, only: tuple[str, ...], kept: Iterable[inputs.Input], log: str) -> None:
    """Answer numbers of cases until None comes; negative numbers count the ``kept`` inputs from -1 down."""
    with Path(log).open("a") as file:
        # What native code prints would otherwise be lost with the process, or mix with the results.
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        faulthandler.enable(file)
        seeds = tuple(seed for seed in all_seeds() if not only or seed.name in only)
        replays = tuple(kept)
        root = make_root()
        try:
            sandbox = Sandbox(root)
            _warm_up(sandbox, seeds)
            connection.send(len(seeds))
            while (number := connection.recv()) is not None:
                made = replays[-1 - number] if number < 0 else make_case(run_seed, number, seeds)
                faulthandler.dump_traceback_later(9, file=file)
                verdict = judge(number, made, sandbox)
                faulthandler.cancel_dump_traceback_later()
                connection.send(verdict)
        finally:
            os.chdir("/")
            shutil.rmtree(root, ignore_errors=True)


def _warm_up(sandbox: Sandbox, seeds: tuple[inputs.Seed, ...]) -> None:
    """Run every seed as it is on every target of its: imports, threads and caches are there then, and all must pass."""
    for seed in seeds:
        for target in seed.targets:
            verdict = judge(-1, inputs.Input(seed.name, target, dict(seed.files)), sandbox)
            if verdict.kind not in {"ok", "refused"} and verdict.kind != "forbidden":
                sys.stderr.write(f"seed {seed.name}, {target}: {verdict.kind}: {verdict.detail}\n")
