"""A tritonserver on this machine, from the wheel of nvidia-pytriton, for tests and load.

The wheel carries Triton with the Python backend alone. It serves a repository by itself once the backend has the stub
of the interpreter's version beside it, and interpreter, packages and libraries of that environment are found. gatenorm
is not in that environment: what is served must do without.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ENVIRONMENT = "GATENORM_TRITON_ENV"
"""Names the environment's folder; by default it is .venv-triton in the repository, as `make triton` makes it."""

_START_SECONDS = 120.0


class ServerError(RuntimeError):
    """The server did not start; the text ends with what it wrote."""


def environment() -> Path:
    """The folder of the environment that has nvidia-pytriton.

    Raises:
        ServerError: there is none.
    """
    folder = Path(os.environ.get(ENVIRONMENT) or Path(__file__).parents[2] / ".venv-triton")
    if not (folder / "bin" / "python").exists():
        raise ServerError(f"{folder}: no environment with nvidia-pytriton; `make triton` makes it")
    return folder


class Triton:
    """A running server. ``http`` and ``grpc`` are its addresses."""

    def __init__(self, repository: Path, scratch: Path, options: Sequence[str] = ()) -> None:
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        http, grpc = free_ports(2)
        # Two servers on one machine must not share their memory's names.
        self._shared_memory = f"gatenorm-{http}-"
        self.http, self.grpc = f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        folder = environment()
        packages = next((folder / "lib").glob("python3.*/site-packages"))
        wheel = packages / "pytriton" / "tritonserver"
        command = [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={_backends(wheel, packages, scratch)}",
            "--http-address=127.0.0.1",
            f"--http-port={http}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={grpc}",
            "--allow-metrics=false",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            *options,
        ]
        self._log = (scratch / "server.log").open("wb")
        self.process = subprocess.Popen(
            command,
            env=_variables(folder, packages),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        """What the server has written."""
        return (self._scratch / "server.log").read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Return when all models are served.

        Raises:
            ServerError: the server ended, or took too long.
        """
        import tritonclient.http as client

        deadline = time.monotonic() + _START_SECONDS
        with contextlib.closing(client.InferenceServerClient(self.http)) as asking:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise ServerError(f"tritonserver ended with {self.process.returncode}:\n{self.log[-4000:]}")
                with contextlib.suppress(Exception):
                    if asking.is_server_ready():
                        return
                time.sleep(0.1)
        raise ServerError(f"tritonserver was not ready after {_START_SECONDS:.0f} s:\n{self.log[-4000:]}")

    def python_processes(self) -> list[int]:
        """The processes of Python models."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if "stub" in Path(f"/proc/{child}/cmdline").read_text()]

    def stop(self, seconds: float = 5.0) -> int:
        """Ask the server to end, and make it end after ``seconds``; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = -int(signal.SIGKILL)
        # The processes of models are in its group; none may be left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if code != 0:
            for region in Path("/dev/shm").glob(f"{self._shared_memory}*"):
                region.unlink(missing_ok=True)
        self._log.close()
        return code


@contextlib.contextmanager
def serving(repository: Path, scratch: Path, options: Sequence[str] = ()) -> Iterator[Triton]:
    """A server of ``repository`` that is ready, until the block ends. ``scratch`` is for its log and backends.

    Raises:
        ServerError: it does not start.
    """
    server = Triton(repository, scratch, options)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def free_ports(number: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [int(entry.getsockname()[1]) for entry in sockets]


def _backends(wheel: Path, packages: Path, scratch: Path) -> Path:
    """The backends with the stub of this interpreter's version, which the wheel keeps elsewhere."""
    backends = scratch / "backends"
    if not backends.exists():
        shutil.copytree(wheel / "backends", backends)
        version = packages.parent.name.removeprefix("python")
        shutil.copy(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    return backends


def _variables(folder: Path, packages: Path) -> dict[str, str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    variables["PATH"] = f"{folder / 'bin'}:{variables['PATH']}"
    variables["PYTHONPATH"] = str(packages)
    variables["LD_LIBRARY_PATH"] = str(packages / "nvidia_pytriton.libs")
    return variables
