"""Live video over a WebSocket: one `Viewer` a socket, and the page that shows it.

A viewer has three tasks on the event loop (listen, send, tick) and a thread for each source of chunks. The threads hand
chunks to an `Outbox` and never wait for the viewer; whatever else blocks runs in the thread pool.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, InputError, MachineError
from fewstep.realtime.told import Chunk
from fewstep.server.live import (
    Busy,
    Live,
    Malformed,
    Message,
    Ping,
    Shown,
    ShowPrompt,
    Source,
    Start,
    Stop,
    Studio,
    Switch,
    Teacher,
    check_prompt,
    encode,
    failure,
    pack,
    plain,
    read,
)
from fewstep.server.web.feed import Beside, Feed
from fewstep.server.web.origin import is_loopback, may_connect
from fewstep.server.web.room import Limits, Room

try:
    from anyio import CancelScope, create_task_group, fail_after, move_on_after
    from fastapi import APIRouter
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import FileResponse, JSONResponse
    from fastapi.websockets import WebSocket, WebSocketDisconnect
    from prometheus_client import CollectorRegistry
except ImportError as error:
    raise MachineError(f"Live video needs the package {error.name!r}: pip install 'fewstep[serve]'.") from None

SUBPROTOCOL = "fewstep.live"
KEY_PREFIX = "key."  # browsers can't set headers on a socket, but can name subprotocols
GONE, GARBAGE, FAILED, FULL, NO_KEY, SILENT = 1005, 1008, 1011, 1013, 4401, 4408  # codes that sockets close with
PARAMS: dict[type, str] = {Start: "prompt", ShowPrompt: "prompt", Switch: "trick", Teacher: "teacher"}  # of an error
REFUSED = 403  # before there is a socket
FAREWELL = 2.0  # seconds

WEB = Path(__file__).parent / "web"
FILES = ("live.css", "live.js", "link.js", "player.js", "figures.js", "small.js")
PAGES = {"/": "index.html", "/live": "index.html", **{f"/live/{name}": name for name in FILES}}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

# Takes the key that came with a socket, and returns the sentence that says why it is refused, or None.
Authorize = Callable[[str | None], str | None]

_log = logging.getLogger(__name__)


class Leave(Exception):
    """Closes the socket."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


class Viewer:
    """One open socket."""

    def __init__(self, socket: WebSocket, room: Room) -> None:
        self._socket, self._room = socket, room
        self._loop, self._news, self._sending = asyncio.get_running_loop(), asyncio.Event(), asyncio.Lock()
        self._beside = Beside(self._new_feed("teacher"), room.studio, room.teachers)
        self._live: Live | None = None
        self._feed: Feed | None = None
        self._look = Start(type="start", prompt="")
        self._began, self._garbage, self._told_at = 0.0, 0, -1

    async def run(self) -> None:
        """Until the viewer leaves, or has to."""
        leave = Leave(FAILED, "The server failed; its log says why.")
        try:
            await self._tell(await run_in_threadpool(hello, self._room.studio))
            async with create_task_group() as tasks:
                for work in (self._listen, self._send, self._tick):
                    tasks.start_soon(work)
        except* (Leave, WebSocketDisconnect) as left:
            leave = next((one for one in left.exceptions if isinstance(one, Leave)), Leave(GONE, ""))
        except* Exception:
            _log.exception("A live viewer's socket failed.")
        finally:
            self._beside.want(None)
            self._room.meters.left.labels(leave.code).inc()
            with CancelScope(shield=True):
                await run_in_threadpool(self._end, self._live)
        if leave.reason:
            await close(self._socket, leave)

    # -----------------------------------------------------------------------------------------------------------------
    # Listening

    async def _listen(self) -> None:
        while True:
            got = await self._socket.receive()
            if got["type"] == "websocket.disconnect":
                raise WebSocketDisconnect
            message = None
            try:
                message = self._read(got.get("text"))
                await self._do(message)
            except (Leave, WebSocketDisconnect):
                raise
            except Exception as error:
                await self._tell(told(error, PARAMS.get(type(message))))
                self._garbage += isinstance(error, Malformed)
                if self._garbage >= self._room.limits.garbage:
                    raise Leave(GARBAGE, "Too many messages that could not be read.") from None

    def _read(self, text: str | None) -> Message:
        if text is None:
            raise Malformed("Binary messages are not read; send JSON as text.")
        if len(text) > (most := self._room.limits.message):
            raise Malformed(f"A message may have at most {most} characters; this one has {len(text)}.")
        return read(text)

    async def _do(self, message: Message) -> None:
        match message:
            case Start():
                await self._start(message)
            case ShowPrompt(prompt=prompt):
                await run_in_threadpool(self._session().prompt, check_prompt(prompt))
                self._look = self._look.model_copy(update={"prompt": prompt})
                if self._beside.on:
                    self._beside.want(self._look)
            case Switch(trick=trick, on=on):
                await run_in_threadpool(self._session().switch, trick, on)
                await self._tell({"type": "switched", "tricks": dict(self._session().tricks)})
            case Teacher(on=True):
                self._session()
                self._beside.want(self._look)
            case Teacher():
                self._beside.want(None)
            case Stop():
                await self._stop()
            case Shown(index=index, source=source):
                if feed := self._feeds().get(source):
                    feed.outbox.shown(index, time.monotonic())
                    self._news.set()
            case Ping(id=number):
                await self._tell({"type": "pong", "id": number})

    async def _start(self, message: Start) -> None:
        check_prompt(message.prompt)
        self._feed, self._look, self._began = None, message, time.monotonic()
        try:
            live = await run_in_threadpool(self._open, message)
        except Exception:
            self._beside.want(None)
            raise
        self._feed = self._new_feed("live")
        self._feed.start(live)
        if self._beside.on:
            self._beside.want(message)

    async def _stop(self) -> None:
        self._feed = None
        self._beside.want(None)
        await run_in_threadpool(self._end, self._live)
        await self._tell({"type": "stopped"})

    def _session(self) -> Live:
        if self._live is None:
            raise InputError("There is no session yet; send a 'start' message first.")
        return self._live

    def _open(self, message: Start) -> Live:
        """A session in place of the one before. It is there to be closed as soon as it is open: this task may be
        cancelled while it waits here."""
        self._end(self._live)
        live = self._live = self._room.studio.open(message.prompt, seed=message.seed)
        return live

    def _end(self, live: Live | None) -> None:
        if live is not None:
            if self._live is live:
                self._live = None
            live.close()

    # -----------------------------------------------------------------------------------------------------------------
    # Sending

    def _wake(self) -> None:
        """From any thread: there is something to send."""
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._news.set)

    def _new_feed(self, source: Source) -> Feed:
        dropped = self._room.meters.dropped.labels(source)
        return Feed(source, self._room.limits.window, self._wake, dropped.inc)

    def _feeds(self) -> dict[str, Feed]:
        return {feed.source: feed for feed in (self._feed, self._beside.feed) if feed is not None}

    async def _send(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while any([await self._send_next(feed) for feed in self._feeds().values()]):
                pass

    async def _send_next(self, feed: Feed) -> bool:
        """The next chunk of a feed, or why there are no more; returns whether there was a chunk to send."""
        if taken := feed.outbox.take(time.monotonic()):
            await self._send_chunk(feed, *taken)
            return True
        if (error := feed.error) is not None:
            feed.error = None
            await self._tell(told(error, PARAMS[Teacher] if feed is self._beside.feed else None), of=feed)
        if feed.over and feed is self._feed:
            await self._stop()
        return False

    async def _send_chunk(self, feed: Feed, chunk: Chunk, came: float) -> None:
        look, meters = self._look, self._room.meters
        pictures = await run_in_threadpool(encode, chunk.frames, look.format, look.quality)
        if feed is self._feed and not feed.announced:
            feed.announced = True
            meters.first.observe(time.monotonic() - self._began)
            await self._tell(self._ready(chunk), of=feed)
        waited = 1000 * (time.monotonic() - came)
        await self._tell(pack(feed.source, chunk, pictures, look.format, waited), of=feed)
        meters.frames.labels(feed.source).inc(len(pictures))

    def _ready(self, chunk: Chunk) -> dict[str, Any]:
        live, (height, width) = self._session(), chunk.frames.shape[1:3]
        size = {"fps": live.fps, "size": [width, height]}
        return {"type": "ready", **size, "tricks": dict(live.tricks), "prompt": chunk.prompt, "seed": self._look.seed}

    async def _tell(self, message: dict[str, Any] | bytes, of: Feed | None = None) -> None:
        """Send, one at a time. What belongs to a feed that was replaced meanwhile is not sent."""
        async with self._sending:
            if of is not None and of not in self._feeds().values():
                return
            try:
                with fail_after(self._room.limits.silence):
                    if isinstance(message, bytes):
                        await self._socket.send_bytes(message)
                    else:
                        await self._socket.send_json(message)
            except TimeoutError:
                raise Leave(SILENT, "The viewer did not read what it was sent.") from None

    async def _tick(self) -> None:
        """Tell figures, and leave a viewer who shows nothing."""
        limits = self._room.limits
        while True:
            await asyncio.sleep(min(limits.every, limits.silence / 4))
            now = time.monotonic()
            if max(feed.outbox.silent(now) for feed in self._feeds().values()) > limits.silence:
                raise Leave(SILENT, "The viewer did not say that anything was shown.")
            if (live := self._live) is not None and (feed := self._feed) is not None and self._reads(feed):
                figures = plain(await run_in_threadpool(live.stats))
                await self._tell({"type": "stats", "live": figures, **self._figures(feed)}, of=feed)

    def _reads(self, feed: Feed) -> bool:
        """Whether a viewer has room, or has made some since it was last told. Others would only pile up figures."""
        before, self._told_at = self._told_at, feed.outbox.last
        return feed.outbox.in_flight < feed.outbox.window or feed.outbox.last != before

    def _figures(self, feed: Feed) -> dict[str, Any]:
        teacher, outbox = self._beside.feed, feed.outbox
        viewer = {"made": feed.frames, "dropped": outbox.dropped, "in_flight": outbox.in_flight}
        beside = {"made": teacher.frames, "dropped": teacher.outbox.dropped, "fps": teacher.fps}
        return {"viewer": viewer, "teacher": beside if self._beside.on else None}


def hello(studio: Studio) -> dict[str, Any]:
    return {"type": "hello", "name": studio.name, "examples": list(studio.examples), "tricks": dict(studio.tricks)}


def told(error: Exception, param: str | None) -> dict[str, Any]:
    """What a viewer is told of an error. What is no error of ours is logged, and not told."""
    match error:
        case Malformed():
            return failure(str(error), "invalid_message", param=error.param)
        case InputError():
            return failure(str(error), "invalid_value", param=param)
        case Busy():
            return failure(str(error), "busy", param=param, kind="server_error")
        case FewstepError():
            return failure(str(error), "failed", param=param, kind="server_error")
        case _:
            _log.error("A live viewer's request failed.", exc_info=error)
            return failure("The server failed; its log says why.", "failed", param=param, kind="server_error")


async def close(socket: WebSocket, leave: Leave) -> None:
    """Say goodbye, but not for long: who does not read does not hear it either."""
    with move_on_after(FAREWELL), suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(leave.code, leave.reason)


def routes(
    studio: Studio,
    *,
    authorize: Authorize | None = None,
    metrics: CollectorRegistry | None = None,
    origins: Collection[str] = (),
    limits: Limits | None = None,
) -> APIRouter:
    """The live socket at /v1/live and its page at / and /live, to be included in an app.

    Args:
        studio: opens the viewers' sessions.
        authorize: takes the key that a socket came with; returns why it is refused, or None.
        metrics: where the figures of all viewers are registered.
        origins: of pages other than our own that may open a socket, as "https://example.com".
        limits: what a viewer may cost.
    """
    router = APIRouter()
    room = Room(studio, limits or Limits(), metrics)

    async def live(socket: WebSocket) -> None:
        if not may_connect(*_asked(socket), origins):
            room.meters.left.labels(REFUSED).inc()
            refusal = failure("This page may not open a live socket here.", "forbidden_origin")
            await socket.send_denial_response(JSONResponse({"error": refusal["error"]}, REFUSED))
            return
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", ()) else None)
        why = authorize(key_of(socket)) if authorize else None
        if why is not None:
            await refuse(socket, room, Leave(NO_KEY, "The key is refused."), failure(why, "invalid_api_key"))
        elif room.sockets >= room.limits.sockets:
            busy = failure("There are too many viewers; try again in a while.", "busy", kind="server_error")
            await refuse(socket, room, Leave(FULL, "Too many viewers."), busy)
        else:
            room.sockets += 1
            room.meters.viewers.inc()
            try:
                await Viewer(socket, room).run()
            finally:
                room.sockets -= 1
                room.meters.viewers.dec()

    router.add_api_websocket_route("/v1/live", live)
    for path, file in PAGES.items():
        router.add_api_route(path, _page(file), include_in_schema=False)
    return router


async def refuse(socket: WebSocket, room: Room, leave: Leave, why: dict[str, Any]) -> None:
    """After the handshake: a browser tells its page nothing about a socket that was refused before."""
    room.meters.left.labels(leave.code).inc()
    with suppress(WebSocketDisconnect):
        await socket.send_json(why)
    await close(socket, leave)


def key_of(socket: WebSocket) -> str | None:
    """The key, from the header that programs set or from the subprotocol that pages name."""
    scheme, _, key = socket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    offered = [name for name in socket.scope.get("subprotocols", ()) if name.startswith(KEY_PREFIX)]
    return offered[0].removeprefix(KEY_PREFIX) if offered else None


def _asked(socket: WebSocket) -> tuple[str | None, str, bool]:
    server = socket.scope.get("server") or ("", None)
    return socket.headers.get("origin"), socket.headers.get("host", ""), is_loopback(server[0])


def _page(file: str) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(WEB / file, headers=PAGE_HEADERS)

    return page
