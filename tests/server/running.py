"""A real server in a thread of this process, or in a process of its own, and the official client for it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from fewstep.server.app import build_app
from fewstep.server.config import ModelEntry, ServerConfig
from fewstep.server.service import Service

SHAPES = ModelEntry(name="shapes", model="zoo:shapes-1step", max_pixels=8192 * 8192)
MOVING = ModelEntry(name="moving", model="zoo:moving-shapes", call={"num_inference_steps": 2})


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    service: Service

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self, **kwargs: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **kwargs)


@contextmanager
def running(config: ServerConfig, *, warm: bool = True) -> Iterator[Running]:
    app = build_app(config)
    service: Service = app.state.service
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        if warm:
            assert service.worker.ready.wait(60), service.worker.broken
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", service)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def until(true: Any, seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """`fewstep serve` in a process of its own, which can be killed and started again on the same folder."""

    models: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        line = [sys.executable, "-m", "fewstep", "serve", str(self.models), "--port", str(self.port)]
        self.process = subprocess.Popen([*line, "--folder", str(self.folder)])

    def answers(self, path: str = "/health") -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the server has ended"
        try:
            return httpx.get(self.url + path, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def end(self, how: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(40)
