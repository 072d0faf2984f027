"""What all viewers of one studio share: how much each may cost, and the figures of all of them together."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.server.live import Studio

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


@dataclass(frozen=True)
class Limits:
    """What one viewer may cost.

    Attributes:
        window: chunks sent or waiting that were not yet shown.
        silence: seconds without a 'shown' message, or without reading, after which a socket is closed.
        message: characters of a message.
        garbage: messages that can't be read, after which a socket is closed.
        sockets: open at once.
        teachers: that compute at once.
        every: seconds between two 'stats' messages.
    """

    window: int = 8
    silence: float = 20.0
    message: int = 16_384
    garbage: int = 8
    sockets: int = 64
    teachers: int = 1
    every: float = 1.0


class Meters:
    """What is told of all viewers together."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        registry = registry or CollectorRegistry()
        self.viewers = Gauge("fewstep_live_viewers", "Open live sockets.", registry=registry)
        self.frames = Counter("fewstep_live_frames", "Frames sent to viewers.", ["source"], registry=registry)
        self.dropped = Counter(
            "fewstep_live_dropped_frames", "Frames that a viewer had no room for.", ["source"], registry=registry
        )
        self.left = Counter("fewstep_live_closed", "Sockets that were closed or refused.", ["code"], registry=registry)
        self.first = Histogram(
            "fewstep_live_first_frame_seconds", "From a 'start' message to its first frames.", registry=registry
        )


class Room:
    """What all viewers of one studio share."""

    def __init__(self, studio: Studio, limits: Limits, registry: CollectorRegistry | None) -> None:
        self.studio, self.limits, self.meters = studio, limits, Meters(registry)
        self.sockets = 0
        self.teachers = threading.BoundedSemaphore(limits.teachers)
