"""What a session tells its viewer: frames with what they cost, and what it did so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fewstep.realtime.decode import Frames


@dataclass(frozen=True)
class Chunk:
    """Frames that follow one another.

    Attributes:
        frames: RGB bytes (n, height, width, 3).
        index: of the first of them since the session began.
        prompt: what they show.
        due: seconds after the session's first frame at which the first of them is to be shown.
        work: what they cost: steps, the share of the tokens after the first of them, candidates of which they are the
            best, milliseconds of denoising and decoding, megabytes of the window; and `fps`, the frames a second that
            they are to be shown at.
    """

    frames: Frames
    index: int
    prompt: str
    due: float
    work: Mapping[str, float | int | str]


@dataclass(frozen=True)
class Stats:
    """What a session did so far.

    Attributes:
        frames: delivered or dropped.
        fps: frames a second that the last chunks were made at, if nothing had been waited for.
        first_frame_s: seconds from the start of the session to its first frame.
        jitter_ms: p99 − p50 of how late chunks were.
        missed: chunks that were not ready in time.
        dropped: chunks that a viewer did not take in time.
        steps: of the last chunk; an opening's are more.
        load: share of the time that work takes.
        window_mb: keys and values.
        said: what the controller did last.
    """

    frames: int
    fps: float
    first_frame_s: float | None
    jitter_ms: float
    missed: int
    dropped: int
    steps: int
    load: float
    window_mb: float
    said: str
