"""Live video measured through real sockets, of a real but tiny student."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fewstep.bench import served
from fewstep.bench.process import Server, free_port, serving, wait
from fewstep.bench.served import Viewer, unpack
from fewstep.errors import FewstepError, MachineError
from fewstep.realtime.told import Chunk
from fewstep.server.config import ModelEntry
from fewstep.server.engine import Engine
from fewstep.server.live import encode, pack
from fewstep.server.studio import LiveStudio
from tests.server.live.served import served as serve
from tests.server.live.student import save_student

pytestmark = pytest.mark.usefixtures("able_machine")

PROMPTS = ("a red ring", "a blue square", "a green triangle")
FPS = 40


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = save_student(tmp_path_factory.mktemp("live") / "tiny")
    engine = Engine((ModelEntry(name="tiny", model=str(folder), fps=FPS, recipe=["precision"]),))
    engine.load()
    assert engine.live_entry is not None
    with serve(LiveStudio(engine.live_entry, engine.techniques, engine.live.result, most=4)) as at:
        yield f"http://{at}"


def test_a_message_is_read_back_to_pixels() -> None:
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    frames[1:, :8] = 200
    message = pack("live", Chunk(frames, 5, "a ring", 1.5, {"steps": 4}), encode(frames, "jpeg", 100), "jpeg", 0.5)
    chunk = unpack(message)
    assert (chunk.index, chunk.prompt, chunk.due, chunk.work) == (5, "a ring", 1.5, {"steps": 4})
    assert np.abs(chunk.frames.astype(int) - frames).max() < 8


def test_a_viewer_counts_what_comes_and_what_is_left_out(url: str) -> None:
    with Viewer(url) as viewer:
        viewer.start(PROMPTS[0])
        chunks = list(islice(viewer, 4))
        assert [chunk.index for chunk in chunks] == [0, 1, 5, 9]
        assert (viewer.got, viewer.gaps, viewer.fps) == (13, 0, FPS)
        time.sleep(8 * 4 / FPS + 1.0)  # more than may be on their way
        figures = viewer.figures()
        assert viewer.gaps == viewer.dropped > 0
        assert viewer.unsaid == 0
        assert figures["viewer"]["made"] >= viewer.got + viewer.dropped
        viewer.start(PROMPTS[1])  # counts anew
        assert next(iter(viewer)).index == 0
        assert viewer.gaps == 0


def test_frames_that_nobody_told_of_are_counted(url: str) -> None:
    with Viewer(url) as viewer:
        viewer._hear({"type": "ready", "fps": 16})
        for index in (0, 1, 9):
            viewer._take(Chunk(np.zeros((1 if index == 0 else 4, 2, 2, 3), np.uint8), index, "a", 0.0, {}))
        viewer._hear({"type": "stats", "viewer": {"dropped": 1}, "live": {"dropped": 1}})
        assert (viewer.gaps, viewer.dropped, viewer.unsaid) == (4, 2, 2)


def test_what_the_server_refuses_is_raised(url: str) -> None:
    with Viewer(url) as viewer:
        viewer.start(" ")
        with pytest.raises(FewstepError, match="prompt"):
            viewer.read()
            viewer.read()


def test_one_viewer_and_how_long_it_waits(url: str) -> None:
    one = served.seen(url, PROMPTS[0], 1.0, adapt=False)
    assert 0 < one.watched.fps < 1.1 * FPS
    assert one.watched.steps == 4
    assert (one.dropped, one.unsaid) == (0, 0)
    waits = served.delays(url, PROMPTS, 2)
    assert 0 < waits["first_frame_s"] < 2
    assert 0 < waits["another_prompt_s"] <= waits["another_prompt_shown_s"] < 2
    assert served.freely(url, PROMPTS[0], 0.5)["clock"] == FPS


def test_several_viewers_get_all_frames(url: str) -> None:
    many = served.together(url, PROMPTS, 3, 1.0)
    assert many["made"] == pytest.approx(sum(one["watched"]["fps"] for one in many["each"]))
    assert many["dropped"] == many["unsaid"] == 0
    assert len(many["each"]) == 3


def test_a_slow_viewer_holds_nobody_up(url: str) -> None:
    class Measured:
        """Of the server in this process."""

        def __init__(self) -> None:
            self.url = url

        def memory(self) -> float:
            import psutil

            return float(psutil.Process().memory_info().rss)

    seen = served.beside_slow(Measured(), PROMPTS, 2.0)  # type: ignore[arg-type]
    assert seen["dropped"] == seen["unsaid"] == 0
    assert seen["slow"]["made"] > 0.5 * seen["fps"]  # as much is made for it as for one who reads
    assert seen["slow"]["dropped"] > 0
    assert seen["grown_mb"] < 20


def test_one_viewer_too_many_is_told(url: str) -> None:
    with pytest.raises(FewstepError, match="4 viewers already"):
        served.together(url, PROMPTS, 5, 0.5)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    with pytest.raises(MachineError, match=r"fewstep\[serve\]"):
        Viewer("http://127.0.0.1:1")


def test_viewers_to_whom_others_come(url: str) -> None:
    seen = served.joined(url, PROMPTS, 1, 2, 0.5)
    assert len(seen["each"]) == 1
    assert len(seen["joining"]["each"]) == 2
    gaps = [one["watched"]["standstill_s"] for one in seen["joining"]["each"]]
    assert seen["joining"]["standstill_s"] == max(gaps) > 0.5 / FPS
    assert seen["joining"]["last_first_frame_s"] >= seen["joining"]["first_frame_s"] > 0


def test_waiting_ends() -> None:
    with pytest.raises(MachineError, match="in vain for a bus"):
        wait(lambda: False, "a bus", seconds=0.1)


@pytest.mark.slow
def test_a_server_of_its_own(tmp_path: Path) -> None:
    model = {"name": "tiny", "model": str(save_student(tmp_path / "tiny")), "recipe": []}
    with serving([model], ["--viewers", "1"]) as server:
        assert server.memory() > 1e8
        with Viewer(server.url) as viewer:
            viewer.start(PROMPTS[0])
            next(iter(viewer))
            assert server.metric("fewstep_live_viewers") == 1
            assert server.metric("fewstep_live_frames_total") >= 1
        server.end(signal.SIGTERM)
        assert server.process is not None
        assert server.process.returncode in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    server = Server(tmp_path, [{"name": "none", "model": "zoo:none"}], port=free_port())
    with pytest.raises(FewstepError, match="The zoo has no 'none'"):
        server.start()
