"""A live server of its own in a thread, for tests that need real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from fewstep.server.live import Studio
from fewstep.server.stream import routes


def app(studio: Studio, **options: Any) -> FastAPI:
    made = FastAPI()
    made.include_router(routes(studio, **options))
    return made


@contextmanager
def served(studio: Studio, port: int = 0, **options: Any) -> Iterator[str]:
    """`host:port` of a server, on a free port unless one is given, until the block ends."""
    config = uvicorn.Config(app(studio, **options), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive(), "the server did not end"


def eventually(true: Any, seconds: float = 5.0) -> bool:
    """Whether a condition comes true in time."""
    until = time.monotonic() + seconds
    while not (done := bool(true())) and time.monotonic() < until:
        time.sleep(0.01)
    return done


def live_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fewstep-")]
