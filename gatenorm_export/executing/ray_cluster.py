"""The executor that hands tasks to a Ray cluster: one that is there, or one made of this machine's processors."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.executing.ray_talk import Aside
from gatenorm_export.executing.running import clear_labelled, is_there
from gatenorm_export.executing.store import ArtifactStore
from gatenorm_export.executing.tasks import Outcome, Resources, Task
from gatenorm_export.executing.worker import describe, error_of, packed, pieces_of, work
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import FileDigest
from gatenorm_export.records.task import Machine
from gatenorm_export.silence import silent_natives

RETRIES = 3
"""How often a task is begun again after the process or machine that did it died."""


class RayExecutor:
    """Tasks on Ray. ``address`` None is the cluster that RAY_ADDRESS names, or else one started here.

    A connection that the process has already is used, and kept when this closes. Artifacts are kept in ``folder``.

    Raises:
        MissingPartError: ray is not installed.
        InputError: no cluster answers at the address.
    """

    in_process = False

    def __init__(
        self,
        folder: Path,
        *,
        address: str | None = None,
        resources: Resources | None = None,
        retries: int = RETRIES,
        progress: Progress | None = None,
    ) -> None:
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            # A cluster for one command talks to nobody, over no network: Ray reads these as it is imported. The second
            # has its name from where it is the default, and makes the services listen on 127.0.0.1 alone.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            # Ray's workers give way to every other process (niceness 15), and times would show who was at work.
            os.environ.setdefault("RAY_worker_niceness", "0")
        with needs("ray", "the executor ray"):
            import ray
        self._ray: Any = ray
        self._store = ArtifactStore(folder)
        self._resources = resources or Resources()
        self._retries, self._progress = retries, progress or Quiet()
        self._session = secrets.token_hex(4)
        self._waiting: dict[Any, Task] = {}
        self._shipped: dict[str, list[Any]] = {}
        self._machines: dict[str, tuple[Machine, ...]] = {}
        self._ours = self._connect(address)
        self._aside = Aside(self._progress)
        self._aside.__enter__()
        self._work = ray.remote(work)

    def machines(self, resources: Resources | None = None) -> tuple[Machine, ...]:
        """Every node of the cluster that has as much; see :class:`Executor`."""
        wanted = resources or self._resources
        key = repr(wanted)
        if key not in self._machines:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            describing = self._ray.remote(describe)
            asked = []
            for node in self._eligible(wanted):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked.append(describing.options(num_cpus=0, scheduling_strategy=there).remote())
            self._machines[key] = tuple(Machine(**found) for found in self._ray.get(asked))
        return self._machines[key]

    def submit(self, task: Task) -> None:
        """Send it to the cluster, which begins as soon as it can."""
        self._eligible(task.resources or self._resources)
        self._send(task)

    def finished(self) -> Iterator[Outcome]:
        """Outcomes in the order in which tasks end; see :class:`Executor`."""
        while self._waiting:
            (reference,), _ = self._ray.wait(list(self._waiting), num_returns=1)
            task = self._waiting.pop(reference)
            outcome = self._outcome(task, reference)
            if outcome is not None:
                yield outcome

    def artifact(self, artifact: FileDigest) -> Path:
        """Where it lies in the store; see :class:`Executor`."""
        return self._store.get(artifact)

    def close(self) -> None:
        """Cancel what runs; a cluster that was started here ends."""
        for reference in self._waiting:
            # The connection may be what broke.
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._waiting.clear()
        self._shipped.clear()
        if self._ours:
            self._ray.shutdown()
            # On other machines the next task there does it.
            clear_labelled(Path(tempfile.gettempdir()), self._session)
        self._aside.__exit__()

    def _connect(self, address: str) -> bool:
        """Whether the connection is ours to end."""
        if self._ray.is_initialized():
            return False
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            quiet |= {"include_dashboard": False}
            self._progress.say("start a Ray cluster of this machine")
        try:
            with warnings.catch_warnings(), silent_natives(2):
                # What they warn of is what the error says.
                warnings.simplefilter("ignore")
                self._ray.init(address=address, **quiet)
        except Exception as error:
            # Ray raises a dozen types for it, and its texts go over many lines.
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"--executor: no Ray cluster answers at {address} ({said[:200]}); see whether it runs, and whether it "
                "asks for a token (RAY_AUTH_MODE, RAY_AUTH_TOKEN)"
            ) from error
        return True

    def _eligible(self, wanted: Resources) -> list[Any]:
        """The nodes that could ever run such a task: what no node has, Ray would wait for without end."""
        asked = _amounts(wanted)
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        fitting = [
            node for node in nodes if all(node["Resources"].get(name, 0) >= amount for name, amount in asked.items())
        ]
        if not fitting:
            names = sorted({name for node in nodes for name in node["Resources"] if not name.startswith("node:")})
            there = ", ".join(
                f"{name} {max(node['Resources'].get(name, 0) for node in nodes):g}"
                for name in names
                if name not in {"memory", "object_store_memory"}
            )
            needed = ", ".join(f"{name} {amount:g}" for name, amount in asked.items())
            raise RefusedError(f"no machine of the Ray cluster has {needed} together; the most that one has: {there}")
        return fitting

    def _send(self, task: Task) -> None:
        wanted = task.resources or self._resources
        options: dict[str, Any] = {
            "num_cpus": wanted.cpus,
            "num_gpus": wanted.gpus,
            "max_retries": self._retries,
            "retry_exceptions": False,
            "name": task.name,
        }
        if wanted.accelerator is not None:
            options["accelerator_type"] = wanted.accelerator
        if wanted.memory_bytes is not None:
            options["memory"] = wanted.memory_bytes
        if wanted.custom:
            options["resources"] = dict(wanted.custom)
        there = {file.sha256: self._shipped[file.sha256] for file in task.inputs if file.sha256 in self._shipped}
        self._waiting[self._work.options(**options).remote(packed(task, self._session), there)] = task

    def _outcome(self, task: Task, reference: Any) -> Outcome | None:
        """How it ended; None where it was sent again, with files that the worker's machine does not have."""
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = self._ray.get(reference)
        except RayTaskError:
            # A defect, with the worker's traceback.
            raise
        except RayError as error:
            lost = RefusedError(f"{task.name}: {_lost(error, self._retries + 1)}")
            return Outcome(task, error=lost, lost=True)
        worker = Machine(**answer["worker"])
        if "missing" in answer:
            self._ship(task, answer["missing"])
            self._send(task)
            return None
        if "error" in answer:
            return Outcome(task, worker, error=error_of(*answer["error"]))
        artifacts = []
        for described, pieces in answer["artifacts"]:
            artifact = FileDigest(**described)
            self._store.receive(pieces, artifact)
            artifacts.append(artifact)
        return Outcome(task, worker, answer["value"], tuple(artifacts), seconds=answer["seconds"])

    def _ship(self, task: Task, digests: list[str]) -> None:
        """Put files into the object store, once for all tasks."""
        for file in task.inputs:
            if file.sha256 in digests and file.sha256 not in self._shipped:
                if not is_there(file):
                    raise InputError(f"{file.path}: is gone or was changed while {task.name} waited; start again")
                self._progress.say(f"{file.path}: is not on every machine; sending {file.bytes:,} bytes")
                self._shipped[file.sha256] = [self._ray.put(piece) for piece in pieces_of(file.path)]


def _lost(error: Exception, tries: int) -> str:
    """What became of a task that has no outcome, as far as Ray knows, and what to do."""
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError

    first = (str(error).strip().splitlines() or [""])[0][:200]
    said = f"{type(error).__name__}: {first}"
    if isinstance(error, OutOfMemoryError):
        why, advice = "memory ran out", "let fewer tasks share a machine with --ray-resources"
    elif isinstance(error, NodeDiedError | LocalRayletDiedError):
        why, advice = "its machine left the cluster", "see there why, and give the same command again"
    elif isinstance(error, WorkerCrashedError):
        why, advice = "its process died", "Ray does not know why: see the logs of Ray and of the system on that machine"
    else:
        return f"Ray could not have it done ({said}); see Ray's logs, and give the same command again"
    # Ray does not tell how often it has begun a task; one whose cluster goes down may never have been begun.
    return f"not done, and Ray gives it up, which it does after {tries} tries at most: {why} ({said}); {advice}"


def _amounts(wanted: Resources) -> dict[str, float]:
    """Resources under the names that Ray's nodes have them."""
    found: dict[str, float] = {"CPU": wanted.cpus, "GPU": wanted.gpus, **wanted.custom}
    if wanted.memory_bytes is not None:
        found["memory"] = wanted.memory_bytes
    if wanted.accelerator is not None:
        # A node has 1 of its type, and Ray lets a task take a thousandth.
        found[f"accelerator_type:{wanted.accelerator}"] = 0.001
    return {name: amount for name, amount in found.items() if amount}
