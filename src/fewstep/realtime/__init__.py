"""Video without end: a causal student makes it chunk by chunk, and a session keeps it in time with the clock."""

from fewstep.realtime.model import LiveModel
from fewstep.realtime.session import Session

__all__ = ["LiveModel", "Session"]
