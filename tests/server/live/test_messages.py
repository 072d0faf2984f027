"""The messages, what waits for a viewer, and who may connect: everything that needs no socket."""

from __future__ import annotations

import json
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.realtime.told import Chunk
from fewstep.server.live import ENCODERS, Malformed, Shown, Start, encode, pack, plain, read
from fewstep.server.web.feed import Outbox
from fewstep.server.web.origin import is_loopback, may_connect
from tests.server.live.drawn import EXAMPLES, clip


def chunk(index: int, frames: int = 2) -> Chunk:
    return Chunk(np.zeros((frames, 4, 4, 3), np.uint8), index, "a red ring moving left", index / 16, {"steps": 4})


# ---------------------------------------------------------------------------------------------------------------------
# Messages


def test_a_message_is_read() -> None:
    assert read('{"type": "start", "prompt": "a ring", "seed": 3}') == Start(type="start", prompt="a ring", seed=3)
    assert read('{"type": "shown", "index": 8}') == Shown(type="shown", index=8, source="live")


@pytest.mark.parametrize(
    ("text", "param", "says"),
    [
        ("{", None, "JSON"),
        ("[" * 5000, None, "JSON"),
        ("null", None, "object"),
        ("{}", None, "type"),
        ('{"type": "dance"}', None, "'dance'"),
        ('{"type": "start"}', "prompt", "'prompt' of a 'start' message"),
        ('{"type": "start", "prompt": 3}', "prompt", "string"),
        ('{"type": "start", "prompt": "a", "seed": "3"}', "seed", "integer"),
        ('{"type": "start", "prompt": "a", "seed": -1}', "seed", "greater"),
        ('{"type": "start", "prompt": "a", "format": "gif"}', "format", "'jpeg' or 'webp'"),
        ('{"type": "start", "prompt": "a", "quality": 101}', "quality", "100"),
        ('{"type": "start", "prompt": "\\ud800"}', None, "JSON"),
        ('{"type": "shown", "index": true}', "index", "integer"),
        ('{"type": "shown", "index": 1e400}', "index", "integer"),
        ('{"type": "stop", "now": true}', "now", "not permitted"),
        (json.dumps({"type": "prompt", "prompt": "a" * 2001}), "prompt", "2000"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(text: str, param: str | None, says: str) -> None:
    with pytest.raises(Malformed, match="Can't read") as caught:
        read(text)
    assert caught.value.param == param
    assert says in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
types = st.sampled_from(["start", "prompt", "switch", "teacher", "stop", "shown", "ping", "other"])
fields = st.dictionaries(
    st.sampled_from(["prompt", "seed", "trick", "on", "index", "source", "id", "more"]), json_values
)


@given(st.text() | st.builds(lambda name, more: json.dumps({"type": name, **more}), types, fields))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(Malformed):
        assert read(text).type in ("start", "prompt", "switch", "teacher", "stop", "shown", "ping")


@pytest.mark.parametrize("form", ENCODERS)
def test_a_packed_chunk_holds_its_pictures(form: str) -> None:
    frames = clip(EXAMPLES[0], seed=1)[:3]
    given = Chunk(frames, 8, "a ring – rot", 0.5, {"steps": 4, "loss": float("nan")})
    pictures = encode(frames, form, 92)  # type: ignore[arg-type]
    message = pack("live", given, pictures, form, 1.25)  # type: ignore[arg-type]
    start = 4 + int.from_bytes(message[:4], "big")
    header = json.loads(message[4:start])
    assert (header["index"], header["due"], header["prompt"]) == (8, 0.5, "a ring – rot")
    assert header["work"] == {"steps": 4, "loss": None}
    assert start + sum(header["sizes"]) == len(message)
    picture = Image.open(BytesIO(message[start : start + header["sizes"][0]]))
    assert picture.format == form.upper()
    assert np.abs(np.asarray(picture.convert("RGB"), int) - frames[0]).mean() < 4


def test_numbers_without_a_word_in_json_become_null() -> None:
    assert plain({"a": float("inf"), "b": 2.5, "c": None, "d": "x"}) == {"a": None, "b": 2.5, "c": None, "d": "x"}


# ---------------------------------------------------------------------------------------------------------------------
# What waits for a viewer


def test_a_viewer_in_time_gets_every_chunk() -> None:
    outbox = Outbox(window=2)
    for index in range(0, 20, 2):
        assert outbox.offer(chunk(index), 0.0) == 0
        taken = outbox.take(0.0)
        assert taken is not None
        assert taken[0].index == index
        outbox.shown(index, 0.0)
    assert outbox.dropped == 0


def test_past_the_window_the_newest_chunk_replaces_those_that_wait() -> None:
    outbox = Outbox(window=2)
    for index in (0, 2):
        outbox.offer(chunk(index), 0.0)
        assert outbox.take(0.0)
    assert [outbox.offer(chunk(index), 0.0) for index in (4, 6, 8)] == [0, 2, 2]
    assert outbox.take(0.0) is None
    outbox.shown(2, 0.0)
    taken = outbox.take(0.0)
    assert taken is not None
    assert taken[0].index == 8
    assert outbox.dropped == 4


def test_silence_counts_from_the_last_word() -> None:
    outbox = Outbox(window=4)
    outbox.offer(chunk(0), 1.0)
    outbox.offer(chunk(2), 1.0)
    assert outbox.silent(9.0) == 0
    outbox.take(2.0)
    outbox.take(3.0)
    assert outbox.silent(5.0) == 3
    outbox.shown(0, 5.0)
    assert outbox.silent(6.0) == 1
    outbox.shown(2, 6.0)
    assert outbox.silent(60.0) == 0


def test_nothing_can_be_shown_that_was_not_sent() -> None:
    outbox = Outbox(window=4)
    outbox.offer(chunk(0), 0.0)
    with pytest.raises(Malformed, match="at most -1"):
        outbox.shown(0, 0.0)


@given(st.integers(1, 5), st.lists(st.sampled_from(["offer", "take", "shown"]), max_size=60))
def test_an_outbox_never_grows_and_loses_no_frame_silently(window: int, doings: list[str]) -> None:
    outbox, offered, taken = Outbox(window), 0, [-2]
    for doing in doings:
        if doing == "offer":
            outbox.offer(chunk(2 * offered), 0.0)
            offered += 1
        elif doing == "take" and (got := outbox.take(0.0)):
            assert got[0].index > taken[-1]
            taken.append(got[0].index)
        elif doing == "shown" and len(taken) > 1:
            outbox.shown(taken[-1], 0.0)
        waiting = 2 * offered - 2 * (len(taken) - 1) - outbox.dropped
        assert 0 <= waiting <= 2 * window
        assert waiting // 2 + outbox.in_flight <= window + 1


# ---------------------------------------------------------------------------------------------------------------------
# Who may connect


@pytest.mark.parametrize(
    ("origin", "host", "loopback", "may"),
    [
        (None, "127.0.0.1:8000", True, True),  # no browser
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True, True),
        ("http://localhost:8000", "localhost:8000", True, True),
        ("http://[::1]:8000", "[::1]:8000", True, True),
        ("http://LOCALHOST:8000", "localhost:8000", True, True),
        ("http://localhost", "localhost:80", True, True),
        ("https://live.example", "live.example", False, True),
        ("http://localhost:8000", "127.0.0.1:8000", True, False),
        ("http://localhost:9000", "localhost:8000", True, False),
        ("https://evil.example", "127.0.0.1:8000", True, False),
        ("http://127.0.0.1.evil.example:8000", "127.0.0.1:8000", True, False),
        ("http://evil.example:8000", "evil.example:8000", True, False),  # its name was pointed to 127.0.0.1
        ("http://evil.example:8000", "evil.example:8000", False, True),  # that is the server's own name then
        ("null", "127.0.0.1:8000", True, False),
        ("", "", True, False),
        ("file://", "", False, False),
        ("http://localhost:x", "localhost:x", True, False),
        ("https://shown.example", "127.0.0.1:8000", True, True),
    ],
)
def test_only_pages_of_the_same_origin_may_connect(origin: str | None, host: str, loopback: bool, may: bool) -> None:
    assert may_connect(origin, host, loopback, allowed=("https://shown.example",)) is may


def test_loopback_names() -> None:
    assert all(map(is_loopback, ("localhost", "app.localhost", "127.0.0.1", "127.8.9.1", "::1")))
    assert not any(map(is_loopback, ("", "example.com", "10.0.0.1", "127.0.0.1.example", "localhost.example")))
