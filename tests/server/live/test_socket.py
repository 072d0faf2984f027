"""The socket, in process and over a real one: what it tells, whom it refuses, and that nothing is left of anybody."""

from __future__ import annotations

import base64
import json
import os
import runpy
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from fewstep.errors import MachineError
from fewstep.server.stream import PAGES, WEB
from fewstep.server.web.room import Limits
from tests.server.live.drawn import EXAMPLES, TRICKS, DrawnStudio
from tests.server.live.served import app, eventually, live_threads, served

RING, SQUARE, _ = EXAMPLES
START = {"type": "start", "prompt": RING, "seed": 1}


def header_of(message: bytes) -> dict[str, Any]:
    return json.loads(message[4 : 4 + int.from_bytes(message[:4], "big")])


class Client:
    """A viewer of the tests, over either kind of socket."""

    def __init__(self, wire: Any) -> None:
        self.wire = wire
        assert self.next()["type"] == "hello"

    def send(self, **message: Any) -> None:
        self.send_text(json.dumps(message))

    def send_text(self, text: str) -> None:
        self.wire.send(text) if isinstance(self.wire, ClientConnection) else self.wire.send_text(text)

    def next(self) -> dict[str, Any]:
        """The next message; of a chunk its header, with the type "chunk"."""
        got = self.wire.recv(timeout=20) if isinstance(self.wire, ClientConnection) else self._received()
        return json.loads(got) if isinstance(got, str) else {"type": "chunk", **header_of(got)}

    def until(self, kind: str, most: int = 200, **has: Any) -> dict[str, Any]:
        """The next message of a kind; chunks on the way are said to be shown."""
        for _ in range(most):
            message = self.next()
            if message["type"] == "chunk":
                self.send(type="shown", index=message["index"], source=message["source"])
            if message["type"] == kind and all(message[key] == value for key, value in has.items()):
                return message
        raise AssertionError(f"no {kind} {has} came")

    def refused(self) -> dict[str, Any]:
        error = self.until("error")["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def _received(self) -> Any:
        message = self.wire.receive()
        self.wire._raise_on_close(message)
        return message.get("text") or message["bytes"]


@pytest.fixture
def studio() -> DrawnStudio:
    return DrawnStudio()


@contextmanager
def watching(*clients: TestClient) -> Iterator[list[Client]]:
    """A viewer for each."""
    with ExitStack() as stack:
        yield [Client(stack.enter_context(client.websocket_connect("/v1/live"))) for client in clients]


@pytest.fixture
def viewer(studio: DrawnStudio) -> Iterator[Client]:
    with TestClient(app(studio)) as client, client.websocket_connect("/v1/live") as wire:
        yield Client(wire)


def over(at: str, **options: Any) -> Any:
    return connect(f"ws://{at}/v1/live", max_size=None, compression=None, **options)


# ---------------------------------------------------------------------------------------------------------------------
# The protocol


def test_a_session_begins_with_what_it_is(viewer: Client) -> None:
    viewer.send(**START)
    ready = viewer.next()
    assert (ready["type"], ready["fps"], ready["size"], ready["seed"]) == ("ready", 16.0, [64, 64], 1)
    assert ready["tricks"] == dict.fromkeys(TRICKS, True)
    chunks = [viewer.until("chunk") for _ in range(4)]
    assert [one["index"] for one in chunks] == [0, 4, 8, 12]
    assert [one["due"] for one in chunks] == [0, 0.25, 0.5, 0.75]
    assert {one["prompt"] for one in chunks} == {RING}
    assert chunks[0]["work"]["steps"] == 4


def test_a_hello_offers_prompts_and_tricks(studio: DrawnStudio) -> None:
    with TestClient(app(studio)).websocket_connect("/v1/live") as wire:
        assert wire.receive_json() == {
            "type": "hello",
            "name": "drawn shapes",
            "examples": list(EXAMPLES),
            "tricks": TRICKS,
        }


def test_another_prompt_is_followed_in_mid_stream(viewer: Client) -> None:
    viewer.send(**START)
    before = viewer.until("chunk")["index"]
    viewer.send(type="prompt", prompt=SQUARE)
    assert viewer.until("chunk", prompt=SQUARE)["index"] > before


def test_a_trick_is_switched(viewer: Client) -> None:
    viewer.send(**START)
    assert viewer.until("chunk")["work"]["steps"] == 4
    viewer.send(type="switch", trick="int8", on=False)
    assert viewer.until("switched")["tricks"] == {"window": True, "overlap": True, "int8": False}
    assert viewer.until("chunk", index=viewer.until("chunk")["index"] + 4)["work"]["steps"] == 2


def test_figures_come_every_second(viewer: Client) -> None:
    viewer.send(**START)
    stats = viewer.until("stats")
    assert stats["live"]["accuracy"] == 0.95
    assert stats["live"]["load"] is None
    assert stats["viewer"]["made"] > 0
    assert stats["viewer"]["dropped"] == 0
    assert stats["teacher"] is None


def test_the_teacher_runs_beside_and_follows(viewer: Client, studio: DrawnStudio) -> None:
    studio.pause = 0.005
    viewer.send(**START)
    viewer.send(type="teacher", on=True)
    first = viewer.until("chunk", source="teacher")
    assert (first["index"], first["work"]["steps"], len(first["sizes"])) == (0, 50, 17)
    viewer.send(type="prompt", prompt=SQUARE)
    second = viewer.until("chunk", source="teacher", prompt=SQUARE)
    assert second["index"] % 17 == 0
    assert second["index"] > 0
    assert viewer.until("stats")["teacher"]["fps"] > 20
    viewer.send(type="teacher", on=False)
    assert eventually(lambda: "fewstep-teacher" not in live_threads())
    assert viewer.until("stats")["teacher"] is None or viewer.until("stats")["teacher"] is None


def test_a_studio_without_a_teacher_says_so(viewer: Client, studio: DrawnStudio) -> None:
    studio.has_teacher = False
    viewer.send(**START)
    viewer.send(type="teacher", on=True)
    assert viewer.refused()["message"] == "drawn shapes has no teacher to show."
    assert viewer.until("chunk")


def test_switching_the_teacher_on_and_off_starts_no_second_one(viewer: Client, studio: DrawnStudio) -> None:
    viewer.send(**START)
    for _ in range(6):
        viewer.send(type="teacher", on=True)
        viewer.send(type="teacher", on=False)
    viewer.send(type="teacher", on=True)
    viewer.send(type="ping", id=7)
    assert viewer.until("pong")["id"] == 7
    assert live_threads().count("fewstep-teacher") == 1
    assert viewer.until("chunk", source="teacher")


def test_one_teacher_at_a_time(studio: DrawnStudio) -> None:
    with TestClient(app(studio)) as client, watching(client, client) as (first, second):
        for one in (first, second):
            one.send(**START)
            one.until("chunk")
        first.send(type="teacher", on=True)
        first.send(type="ping")
        first.until("pong")
        second.send(type="teacher", on=True)
        assert second.refused()["code"] == "busy"
        first.send(type="stop")
        first.until("stopped")
        assert eventually(lambda: "fewstep-teacher" not in live_threads())
        second.send(type="teacher", on=True)
        assert second.until("chunk", source="teacher")


def test_stop_and_start_again(viewer: Client, studio: DrawnStudio) -> None:
    viewer.send(**START)
    viewer.until("chunk", index=4)
    viewer.send(type="stop")
    viewer.until("stopped")
    assert not studio.sessions
    viewer.send(type="prompt", prompt=SQUARE)
    assert "no session" in viewer.refused()["message"]
    viewer.send(type="start", prompt=SQUARE, format="webp", quality=80)
    assert viewer.until("ready")["prompt"] == SQUARE
    first = viewer.until("chunk")
    assert (first["index"], first["format"]) == (0, "webp")


def test_a_start_replaces_the_session_before(viewer: Client, studio: DrawnStudio) -> None:
    studio.most = 1
    for prompt in (RING, SQUARE, RING):
        viewer.send(type="start", prompt=prompt)
        viewer.until("ready", prompt=prompt)
        assert viewer.until("chunk")["index"] == 0
    assert (len(studio.sessions), studio.opened) == (1, 3)


def test_a_session_that_fails_is_told_and_another_may_begin(
    viewer: Client, studio: DrawnStudio, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("tests.server.live.drawn.AHEAD", "not a number")
        viewer.send(**START)
        assert viewer.refused() == {
            "message": "The server failed; its log says why.",
            "type": "server_error",
            "param": None,
            "code": "failed",
        }
        viewer.until("stopped")
    assert "TypeError" in caplog.text
    assert not studio.sessions
    viewer.send(**START)
    assert viewer.until("ready")


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        ("{", "invalid_message", None),
        ('{"type": "start", "prompt": 3}', "invalid_message", "prompt"),
        ('{"type": "start", "prompt": "  "}', "invalid_value", "prompt"),
        ('{"type": "start", "prompt": "a purple cow"}', "invalid_value", "prompt"),
        ('{"type": "prompt", "prompt": "a red ring moving left"}', "invalid_value", "prompt"),
        ('{"type": "teacher", "on": true}', "invalid_value", "teacher"),
        ('{"type": "x", "more": "' + "a" * 20_000 + '"}', "invalid_message", None),
    ],
)
def test_what_is_wrong_is_answered_and_the_socket_stays(viewer: Client, text: str, code: str, param: str) -> None:
    viewer.send_text(text)
    error = viewer.refused()
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    viewer.send(**START)
    assert viewer.until("chunk")


def test_in_mid_stream_too(viewer: Client) -> None:
    viewer.send(**START)
    viewer.until("chunk")
    for message in ({"type": "switch", "trick": "magic", "on": True}, {"type": "prompt", "prompt": "nothing"}):
        viewer.send(**message)
        assert viewer.refused()["code"] == "invalid_value"
    viewer.send(type="shown", index=10_000)
    assert viewer.refused()["param"] == "index"
    viewer.wire.send_bytes(b"\x00\x01")
    assert "Binary" in viewer.refused()["message"]
    assert viewer.until("chunk")


def test_repeated_garbage_closes_the_socket(viewer: Client, studio: DrawnStudio) -> None:
    viewer.send(**START)
    for _ in range(Limits().garbage):
        viewer.send_text("garbage")
    with pytest.raises(WebSocketDisconnect) as caught:
        viewer.until("never")
    assert caught.value.code == 1008
    assert not studio.sessions


def test_too_many_viewers(studio: DrawnStudio) -> None:
    studio.most = 1
    with TestClient(app(studio, limits=Limits(sockets=2))) as client, watching(client, client) as (first, second):
        first.send(**START)
        first.until("chunk")
        second.send(**START)
        assert second.refused()["code"] == "busy"
        with client.websocket_connect("/v1/live") as third:
            assert third.receive_json()["error"]["code"] == "busy"
            with pytest.raises(WebSocketDisconnect) as caught:
                third.receive_json()
            assert caught.value.code == 1013
        first.send(type="stop")
        first.until("stopped")
        second.send(**START)
        assert second.until("chunk")


def test_keys(studio: DrawnStudio) -> None:
    def authorize(key: str | None) -> str | None:
        return None if key == "fs-good" else "This key is not known."

    with TestClient(app(studio, authorize=authorize)) as client:
        with client.websocket_connect("/v1/live", headers={"Authorization": "Bearer fs-good"}) as wire:
            Client(wire)
        with client.websocket_connect("/v1/live", subprotocols=["fewstep.live", "key.fs-good"]) as wire:
            assert wire.accepted_subprotocol == "fewstep.live"
            Client(wire)
        for headers in ({}, {"Authorization": "Bearer fs-bad"}, {"Authorization": "Basic fs-good"}):
            with client.websocket_connect("/v1/live", headers=headers) as wire:
                assert wire.receive_json()["error"]["code"] == "invalid_api_key"
                with pytest.raises(WebSocketDisconnect) as caught:
                    wire.receive_json()
                assert caught.value.code == 4401


def test_pages_of_others_are_refused_before_there_is_a_socket(studio: DrawnStudio) -> None:
    with TestClient(app(studio)) as client:
        with pytest.raises(WebSocketDenialResponse) as caught:
            client.websocket_connect("/v1/live", headers={"Origin": "https://evil.example"}).__enter__()
        assert caught.value.status_code == 403
        assert caught.value.json()["error"]["code"] == "forbidden_origin"
        with client.websocket_connect("/v1/live", headers={"Origin": "http://testserver"}) as wire:
            Client(wire)
    with served(studio, origins=["https://shown.example"]) as at:
        for origin in ("https://evil.example", f"http://localhost:{at.split(':')[1]}", "null"):
            with pytest.raises(InvalidStatus, match="403"):
                over(at, origin=origin)
        for origin in (f"http://{at}", "https://shown.example"):
            with over(at, origin=origin) as wire:
                Client(wire)


def test_the_page_and_its_files() -> None:
    with TestClient(app(DrawnStudio())) as client:
        for path, file in PAGES.items():
            kind = {".html": "html", ".css": "css", ".js": "javascript"}[Path(file).suffix]
            got = client.get(path)
            assert got.status_code == 200
            assert kind in got.headers["content-type"]
            assert "default-src 'self'" in got.headers["content-security-policy"]
            assert "://" not in got.text.replace("http://www.w3.org/2000/svg", ""), "nothing comes from elsewhere"
        kept = {file.name for file in WEB.iterdir() if file.suffix in (".html", ".css", ".js")}
        assert kept == set(PAGES.values())
        assert client.get("/live/../feed.py").status_code == 404
        assert client.get("/live/feed.py").status_code == 404


@pytest.mark.parametrize("package", ["fastapi", "prometheus_client"])
def test_a_missing_package_is_named_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fewstep.server.stream")
    with pytest.raises(MachineError, match=rf"needs the package '{package}': pip install 'fewstep\[serve\]'"):
        runpy.run_module("fewstep.server.stream")


# ---------------------------------------------------------------------------------------------------------------------
# Slow, gone, and many


def test_a_viewer_who_shows_nothing_costs_no_memory_and_holds_nothing_up() -> None:
    studio = DrawnStudio(fps=400, scale=6)  # 44 MB a second
    with served(studio, limits=Limits(window=3)) as at, over(at) as wire:
        viewer = Client(wire)
        viewer.send(**START)
        viewer.until("stats")
        live, process = next(iter(studio.sessions)), psutil.Process()
        made, memory = live.made, process.memory_info().rss
        got: list[dict[str, Any]] = []
        until = time.monotonic() + 1.5
        while time.monotonic() < until:  # reads, but never says that anything was shown
            viewer.send(type="ping")
            got.append(viewer.next())
            time.sleep(0.01)
        assert live.made - made > 150
        assert process.memory_info().rss - memory < 25e6
        kinds = [one["type"] for one in got]
        assert kinds.count("chunk") <= 3
        assert kinds.count("stats") <= 1  # more would pile up where a viewer is slow to read
        last = max(one["index"] for one in got if one["type"] == "chunk")
        viewer.send(type="shown", index=last)
        assert viewer.until("stats")["viewer"]["dropped"] > 100


def test_a_viewer_who_is_silent_for_too_long_is_left() -> None:
    studio = DrawnStudio()
    with served(studio, limits=Limits(window=2, silence=0.4)) as at, over(at) as wire:
        viewer = Client(wire)
        viewer.send(**START)
        with pytest.raises(ConnectionClosed) as caught:
            for _ in range(100):
                viewer.next()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4408
        assert eventually(lambda: not studio.sessions and not live_threads())


def test_a_viewer_who_reads_nothing_is_left() -> None:
    studio = DrawnStudio(fps=200, scale=8)
    with served(studio, limits=Limits(window=1000, silence=0.6)) as at:
        host, port = at.split(":")
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect((host, int(port)))
            key = base64.b64encode(os.urandom(16)).decode()
            wire.sendall(
                f"GET /v1/live HTTP/1.1\r\nHost: {at}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            wire.recv(2000)
            wire.sendall(masked(json.dumps(START).encode()))
            assert eventually(lambda: studio.sessions)
            assert eventually(lambda: not studio.sessions and not live_threads(), seconds=6)
        with over(at) as other:
            viewer = Client(other)
            viewer.send(**START)
            assert viewer.until("chunk")


def masked(payload: bytes) -> bytes:
    """A client's text frame whose mask is 0."""
    return bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload


@pytest.mark.parametrize("goodbye", [True, False])
def test_nothing_is_left_of_a_viewer_who_is_gone(goodbye: bool) -> None:
    studio, registry = DrawnStudio(pause=0.01), CollectorRegistry()
    with served(studio, metrics=registry) as at:
        for _ in range(5):
            with over(at) as wire:
                viewer = Client(wire)
                viewer.send(**START)
                viewer.send(type="teacher", on=True)
                viewer.until("chunk")
                wire.close() if goodbye else wire.socket.shutdown(socket.SHUT_RDWR)
                assert eventually(lambda: not studio.sessions)
                assert eventually(lambda: not live_threads())
        assert eventually(lambda: registry.get_sample_value("fewstep_live_viewers") == 0)
        assert (registry.get_sample_value("fewstep_live_frames_total", {"source": "live"}) or 0) >= 20
        assert registry.get_sample_value("fewstep_live_first_frame_seconds_count") == 5


def test_a_viewer_who_is_gone_while_a_session_is_opened_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    studio, opened = DrawnStudio(), DrawnStudio.open

    def slowly(self: DrawnStudio, prompt: str, *, seed: int | None) -> Any:
        time.sleep(0.5)
        return opened(self, prompt, seed=seed)

    monkeypatch.setattr(DrawnStudio, "open", slowly)
    with served(studio) as at:
        with over(at) as wire:
            Client(wire).send(**START)
        assert eventually(lambda: studio.opened == 1)
        assert eventually(lambda: not studio.sessions and not live_threads())


def test_many_viewers_at_once_see_each_their_own() -> None:
    studio = DrawnStudio()

    def watch(at: str, number: int) -> list[str]:
        with over(at) as wire:
            viewer = Client(wire)
            viewer.send(type="start", prompt=EXAMPLES[number % 3], seed=number)
            return [viewer.until("chunk", index=4 * n)["prompt"] for n in range(6)]

    with served(studio) as at, ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda number: watch(at, number), range(8)))
        assert [set(one) for one in seen] == [{EXAMPLES[number % 3]} for number in range(8)]
        assert eventually(lambda: not studio.sessions and not live_threads())


def test_after_garbage_of_all_kinds_the_server_is_as_healthy_as_before() -> None:
    studio = DrawnStudio()
    junk: list[str | bytes] = [
        "",
        "{",
        "[]",
        b"\x00" * 100,
        '{"type":"start"}',
        "é" * 9000,
        b"",
        '{"type":5}',
        "x" * 60_000,
    ]
    with served(studio) as at:
        for _ in range(3):
            with over(at) as wire, pytest.raises(ConnectionClosed):
                for message in junk * 2:
                    wire.send(message)
                while True:
                    wire.recv(timeout=10)
        with over(at) as wire, pytest.raises(ConnectionClosed):
            wire.send("x" * 20_000_000)  # more than the server's socket reads
            while True:
                wire.recv(timeout=10)
        with over(at) as wire:
            viewer = Client(wire)
            viewer.send(**START)
            assert viewer.until("chunk", index=8)
        assert eventually(lambda: not studio.sessions and not live_threads())


def test_the_server_ends_while_viewers_watch() -> None:
    studio = DrawnStudio()
    with ExitStack() as server, ExitStack() as stack:
        wire = stack.enter_context(over(server.enter_context(served(studio))))
        viewer = Client(wire)
        viewer.send(**START)
        viewer.until("chunk")
        server.close()
        assert not studio.sessions
        with pytest.raises(ConnectionClosed):
            for _ in range(100):
                viewer.next()
