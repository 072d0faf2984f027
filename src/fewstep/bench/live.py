"""Live video, measured as a viewer sees it: how evenly frames come, and whether they go on showing what was asked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.realtime import LiveModel, Session
from fewstep.realtime.decode import Frames
from fewstep.realtime.told import Chunk
from fewstep.zoo.moving.oracle import answers, read, still_answers
from fewstep.zoo.moving.scenes import FRAMES, Ask

Clip = NDArray[np.float32]
SPAN = 5.0  # seconds at the beginning and at the end that are compared
SETTLED = 1.0  # seconds after which another prompt must hold


@dataclass(frozen=True)
class Watched:
    """What a viewer saw.

    Attributes:
        frames: shown.
        seconds: from the first one to the last.
        fps: frames a second.
        first_frame_s: from the start of the session to its first frame.
        jitter_ms: p99 − p50 of the intervals between frames.
        missed: chunks that were not there when they were due; each moves all after it.
        standstill_s: the longest that one frame stayed, but for the first.
        steps: of a chunk after the first one, which takes its own, on average.
        load: share of the time that work took.
        window_mb: keys and values.
    """

    frames: int
    seconds: float
    fps: float
    first_frame_s: float
    jitter_ms: float
    missed: int
    standstill_s: float
    steps: float
    load: float
    window_mb: float


@dataclass(frozen=True)
class Shown:
    """What was on a screen: when each frame was, the steps of each chunk, and the chunks that came too late."""

    times: list[float]
    steps: list[float]
    missed: int

    def watched(self, first_frame_s: float, load: float, window_mb: float) -> Watched:
        times = self.times
        gaps = 1000 * np.diff(times[1:])  # the first frame stays for a while, by intention
        return Watched(
            frames=len(times),
            seconds=times[-1] - times[0],
            fps=(len(times) - 2) / (times[-1] - times[1]),
            first_frame_s=first_frame_s,
            jitter_ms=float(np.percentile(gaps, 99) - np.percentile(gaps, 50)),
            missed=self.missed,
            standstill_s=float(gaps.max()) / 1000,
            steps=float(np.mean(self.steps[1:])),
            load=load,
            window_mb=window_mb,
        )


def watch(session: Session, seconds: float) -> Watched:
    """Show frames when they are due for so many seconds, and close the session."""
    with session:
        shown = show(session, session.fps, seconds)
        stats = session.stats
    return shown.watched(stats.first_frame_s or 0.0, stats.load, stats.window_mb)


def show(chunks: Iterable[Chunk], fps: float, seconds: float) -> Shown:
    """Show frames when they are due. Those that come late are shown at once, and all after them later by as much."""
    start, missed, shown, steps = 0.0, 0, list[float](), list[float]()
    for chunk in chunks:
        now = time.monotonic()
        missed += bool(shown) and now - chunk.due > start
        start = now if not shown else max(start, now - chunk.due)
        for i in range(len(chunk.frames)):
            due = start + chunk.due + i / float(chunk.work.get("fps", fps))
            time.sleep(max(0.0, due - time.monotonic()))
            shown.append(time.monotonic())
        steps.append(float(chunk.work["steps"]))
        if shown[-1] - shown[0] >= seconds and len(steps) > 1 and len(shown) > 2:
            break
    return Shown(shown, steps, missed)


def throughput(model: LiveModel, prompt: str, seconds: float, **options: Any) -> float:
    """Frames a second when frames are taken as fast as they come, after the first chunks."""
    with Session(model, prompt, seed=0, paced=False, **options) as session:
        return rate(session, seconds)


def rate(chunks: Iterable[Chunk], seconds: float) -> float:
    """Frames a second of chunks that are taken as they come, after the first four."""
    stream, frames = iter(chunks), 0
    for _ in range(4):
        next(stream)
    start = time.monotonic()
    while (passed := time.monotonic() - start) < seconds:
        frames += len(next(stream).frames)
    return frames / passed


@dataclass(frozen=True)
class Kept:
    """How well live video answers its prompts, as shares of its pieces of 17 frames, in [0, 1].

    Attributes:
        opening: the first piece of each, judged as a clip of its own.
        early, late: pieces of the first and the last five seconds; objects may have turned round.
        switched: pieces that end within two seconds of another prompt, from one second on; NaN if there was none.
    """

    opening: float
    early: float
    late: float
    switched: float


def kept(
    model: LiveModel, asked: Sequence[tuple[str, Ask]], *, seconds: float = 60.0, fps: float = 16.0, **options: Any
) -> Kept:
    """Make `seconds` of video for each prompt, then two more for the next prompt of the list, and judge it."""
    opening, early, late, switched = (list[bool]() for _ in range(4))
    span, whole = round(SPAN * fps), round(seconds * fps)
    for seed, (text, ask) in enumerate(asked):
        text_after, ask_after = asked[(seed + 1) % len(asked)]
        first, after = _video(model, text, text_after, whole, round(2 * fps), seed, options)
        opening.append(answers(ask, read(first[:FRAMES])))
        early += [still_answers(ask, read(piece)) for piece in _pieces(first[:span])]
        late += [still_answers(ask, read(piece)) for piece in _pieces(first[-span:])]
        switched += [still_answers(ask_after, read(after[round(SETTLED * fps) :][:FRAMES]))] if len(after) else []
    return Kept(*(float(np.mean(found)) if found else float("nan") for found in (opening, early, late, switched)))


def _pieces(video: Clip) -> Iterator[Clip]:
    return (video[low : low + FRAMES] for low in range(0, len(video) - FRAMES + 1, FRAMES - 1))


def _video(
    model: LiveModel, text: str, text_after: str, frames: int, frames_after: int, seed: int, options: dict[str, Any]
) -> tuple[Clip, Clip]:
    """Frames of one prompt and then of another, in [0, 1]."""
    first, after = list[Frames](), list[Frames]()
    with Session(model, text, seed=seed, paced=False, **options) as session:
        for chunk in session:
            (first if chunk.prompt == text else after).append(chunk.frames)
            if sum(map(len, first)) >= frames and text_after != text and not after:
                session.prompt(text_after)
            if text_after == text or sum(map(len, after)) >= frames_after + FRAMES:
                break
    return _joined(first)[:frames], _joined(after)


def _joined(parts: Sequence[Frames]) -> Clip:
    return np.asarray(np.concatenate(parts) / 255 if parts else np.zeros((0, 0, 0, 3)), np.float32)


def drift(kept: Kept) -> float:
    """What is left at the end of what was right at the beginning, in [0, 1]; NaN where nothing was."""
    return kept.late / kept.early if kept.early else float("nan")
