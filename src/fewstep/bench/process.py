"""`fewstep serve` in a process of its own, for benchmarks that measure it from outside."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from fewstep.errors import FewstepError, MachineError

PATIENCE = 300.0  # seconds until a server is ready, which compiles, or something has happened
METRIC = r"^{}(?:\{{.*\}})? (\S+)$"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(true: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something is so.

    Raises:
        MachineError: it took longer than so many seconds.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise MachineError(f"Waited {seconds:.0f} seconds in vain for {what}.")
        time.sleep(0.05)


@dataclass
class Server:
    """A server on the loopback device, which can be killed and started again on the same folder.

    Attributes:
        folder: for its jobs, and for what it says.
        models: its entries, as in the file of models.
        options: more of its command line.
    """

    folder: Path
    models: Sequence[Mapping[str, Any]]
    options: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            FewstepError: it ended, and what it said.
            MachineError: it does not get ready.
        """
        file, said = self.folder / "models.yaml", self.folder / "said.txt"
        file.write_text(yaml.safe_dump({"models": [dict(one) for one in self.models]}))
        place = ["--port", str(self.port), "--folder", str(self.folder / "served")]
        line = [sys.executable, "-m", "fewstep", "serve", str(file), *place, *self.options]
        with said.open("wb") as into:
            self.process = subprocess.Popen(line, stdout=into, stderr=into)
        wait(lambda: self.ready() or self._ended(), "the server to get ready")
        if self._ended():
            raise FewstepError(f"The server ended at its start: {said.read_text(errors='replace').strip()[-500:]}")

    def ready(self) -> bool:
        try:
            return bool(urlopen(f"{self.url}/ready", timeout=10).status == 200)
        except (URLError, OSError):
            return False

    def metric(self, name: str) -> float:
        """A figure of /metrics, summed over its labels."""
        said = urlopen(f"{self.url}/metrics", timeout=30).read().decode()
        return sum(map(float, re.findall(METRIC.format(re.escape(name)), said, re.MULTILINE)))

    def memory(self) -> float:
        """Resident bytes."""
        return self.metric("process_resident_memory_bytes")

    def end(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None


@contextmanager
def serving(models: Sequence[Mapping[str, Any]], options: Sequence[str] = ()) -> Iterator[Server]:
    """A server that is ready, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), models, options)
        try:
            server.start()
            yield server
        finally:
            server.end(signal.SIGKILL)
