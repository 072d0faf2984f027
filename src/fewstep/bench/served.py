"""Live video through its socket, as viewers have it: from the prompt that was sent to pixels.

The protocol is written down in docs/live-protocol.md.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from fewstep.bench.live import Watched, rate, show
from fewstep.bench.process import Server
from fewstep.errors import FewstepError, MachineError
from fewstep.realtime.told import Chunk

SILENCE = 60.0  # seconds without a message, after which a server is given up
FPS = 16.0  # until the server says its own
SLOW = 10  # of which one message is read by a slow viewer
SETTLE = 2.0  # seconds after which a session's memory is all there


class Viewer:
    """One socket. Whoever iterates gets its chunks, decoded; each is said to be shown when the next one is asked for.

    Attributes:
        fps: that frames are shown at.
        got: frames that came.
        gaps: frames that were left out between those that came.
        stats: the newest figures that the server told.
        dropped: frames that it told as dropped, by the session or on their way.
        unsaid: frames left out that it had not told as dropped when it told its figures.
    """

    def __init__(self, url: str, *, ahead: int = 16) -> None:
        """`ahead`: messages that are read from the socket before they are asked for."""
        try:
            from websockets.sync.client import connect
        except ImportError:
            raise MachineError("A viewer needs the package 'websockets': pip install 'fewstep[serve]'.") from None
        self._open = ExitStack()
        address = f"{url.replace('http', 'ws', 1)}/v1/live"
        self._socket = self._open.enter_context(connect(address, max_size=None, max_queue=ahead))
        self.fps, self._answered = FPS, False
        self._forget()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def start(self, prompt: str, seed: int = 0) -> None:
        """A new session in place of the one before."""
        self._forget()
        self.say("start", prompt=prompt, seed=seed)

    def _forget(self) -> None:
        self.got = self.gaps = self.dropped = self.unsaid = 0
        self.stats: dict[str, Any] = {}
        self._ready, self._next = False, 0

    def say(self, kind: str, **more: Any) -> None:
        self._socket.send(json.dumps({"type": kind, **more}))

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            chunk = self.read()
            if chunk is not None:
                yield chunk
                self.say("shown", index=chunk.index)

    def read(self) -> Chunk | None:
        """The next message: a chunk of this session, or None when it was something else.

        Raises:
            FewstepError: an error, or the end of the socket.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            message = self._socket.recv(timeout=SILENCE)
        except (ConnectionClosed, TimeoutError) as error:
            raise FewstepError(f"The live socket ended: {error or 'nothing came'}.") from None
        if isinstance(message, str):
            self._hear(json.loads(message))
            return None
        return self._take(unpack(message)) if self._ready else None

    def step(self) -> None:
        """Read one message; what came is shown at once."""
        if (chunk := self.read()) is not None:
            self.say("shown", index=chunk.index)

    def figures(self) -> dict[str, Any]:
        """What the server tells from now on, not what was on its way before."""
        self._answered = False
        self.say("ping")
        while not self._answered:
            self.step()
        self.stats = {}
        while not self.stats:
            self.step()
        return self.stats

    def _hear(self, said: dict[str, Any]) -> None:
        match said["type"]:
            case "ready":
                self._ready, self.fps = True, said["fps"]
            case "stats":
                self.stats = said
                self.dropped = said["viewer"]["dropped"] + said["live"].get("dropped", 0)
                self.unsaid = max(self.unsaid, self.gaps - self.dropped)
            case "pong":
                self._answered = True
            case "error":
                raise FewstepError(said["error"]["message"])

    def _take(self, chunk: Chunk) -> Chunk:
        self.got += len(chunk.frames)
        self.gaps += chunk.index - self._next
        self._next = chunk.index + len(chunk.frames)
        return chunk


def unpack(message: bytes) -> Chunk:
    """A chunk from a binary message of the live socket, its pictures decoded."""
    place = 4 + int.from_bytes(message[:4], "big")
    header, frames = json.loads(message[4:place]), []
    for size in header["sizes"]:
        frames.append(np.asarray(Image.open(BytesIO(message[place : place + size])).convert("RGB")))
        place += size
    return Chunk(np.stack(frames), header["index"], header["prompt"], header["due"], header["work"])


def freely(url: str, prompt: str, seconds: float) -> dict[str, Any]:
    """Frames a second of a viewer who shows each chunk at once; at most those of the server's clock."""
    with Viewer(url) as viewer:
        viewer.start(prompt)
        next(iter(viewer))
        viewer.say("switch", trick="adapt", on=False)
        made = rate(viewer, seconds)
        return {"made": made, "clock": viewer.fps}


def delays(url: str, prompts: Sequence[str], times: int) -> dict[str, Any]:
    """Seconds from a prompt that was sent to its first frame in pixels: of a new session, and in mid-stream. There the
    frame is not due yet, and shown later."""
    firsts, turns, shown = [], [], []
    for seed in range(times):
        before, after = prompts[seed % len(prompts)], prompts[(seed + 1) % len(prompts)]
        with Viewer(url) as viewer:
            sent = time.monotonic()
            viewer.start(before, seed)
            stream = iter(viewer)
            next(stream)
            began = time.monotonic()
            firsts.append(began - sent)
            for _ in range(4):  # until it runs ahead of its clock
                next(stream)
            sent = time.monotonic()
            viewer.say("prompt", prompt=after)
            chunk = next(chunk for chunk in stream if chunk.prompt == after)
            turns.append(time.monotonic() - sent)
            shown.append(max(turns[-1], began + chunk.due - sent))
    told = {"first_frame_s": firsts, "another_prompt_s": turns, "another_prompt_shown_s": shown}
    medians = {name: statistics.median(seconds) for name, seconds in told.items()}
    return {**medians, "all": told}


@dataclass(frozen=True)
class Seen:
    """One viewer's own account.

    Attributes:
        watched: what was on the screen.
        dropped: frames that the server told as dropped.
        unsaid: frames that were missing, and not told as dropped.
    """

    watched: Watched
    dropped: int
    unsaid: int


def seen(url: str, prompt: str, seconds: float, *, seed: int = 0, adapt: bool = True) -> Seen:
    """Show frames when they are due for so many seconds."""
    with Viewer(url) as viewer:
        sent = time.monotonic()
        viewer.start(prompt, seed)
        stream = iter(viewer)
        first = next(stream)
        first_frame_s = time.monotonic() - sent
        viewer.say("switch", trick="adapt", on=adapt)
        shown = show(chain([first], stream), viewer.fps, seconds)
        live = viewer.figures()["live"]
    watched = shown.watched(first_frame_s, live["load"] or 0.0, live["window_mb"] or 0.0)
    return Seen(watched, viewer.dropped, viewer.unsaid)


def together(url: str, prompts: Sequence[str], viewers: int, seconds: float) -> dict[str, Any]:
    """So many viewers at once, of one server."""
    with ThreadPoolExecutor(viewers) as pool:
        each = [pool.submit(seen, url, prompts[i % len(prompts)], seconds, seed=i) for i in range(viewers)]
        found = [one.result() for one in each]
    watched = [one.watched for one in found]
    return {
        "made": sum(one.fps for one in watched),
        "first_frame_s": statistics.median(one.first_frame_s for one in watched),
        "last_first_frame_s": max(one.first_frame_s for one in watched),
        "standstill_s": max(one.standstill_s for one in watched),
        "jitter_ms": max(one.jitter_ms for one in watched),
        "missed": sum(one.missed for one in watched),
        "steps": statistics.mean(one.steps for one in watched),
        "dropped": sum(one.dropped for one in found),
        "unsaid": sum(one.unsaid for one in found),
        "each": [asdict(one) for one in found],
    }


def joined(url: str, prompts: Sequence[str], watching: int, joining: int, seconds: float) -> dict[str, Any]:
    """Some viewers, to whom others come in one moment, after as long as these stay: what the first ones see."""
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(together, url, prompts, watching, 2 * seconds + SETTLE)
        time.sleep(seconds)
        others = together(url, prompts, joining, seconds)
        return first.result() | {"joining": others}


def beside_slow(server: Server, prompts: Sequence[str], seconds: float) -> dict[str, Any]:
    """A viewer beside one who reads a message where ten come: what the first one sees, what is made for the second
    one, and by how many bytes the server grows meanwhile."""
    with Viewer(server.url, ahead=1) as slow, ThreadPoolExecutor(1) as pool:
        slow.start(prompts[0])
        began, stream = time.monotonic(), iter(slow)
        next(stream)  # of fewer frames
        span = len(next(stream).frames) / slow.fps
        time.sleep(SETTLE)
        before, other = server.memory(), pool.submit(seen, server.url, prompts[-1], seconds, adapt=False)
        while not other.done():
            slow.step()
            time.sleep(SLOW * span)
        after, normal = server.memory(), other.result()
        made = slow.figures()["viewer"]["made"] / (time.monotonic() - began)
    return {
        "made": normal.watched.fps,
        **asdict(normal.watched),
        "dropped": normal.dropped,
        "unsaid": normal.unsaid + slow.unsaid,
        "slow": {"made": made, "got": slow.got, "dropped": slow.dropped},
        "grown_mb": (after - before) / 1e6,
    }
