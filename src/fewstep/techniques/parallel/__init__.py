"""Sharing the work of one model among processes."""

from fewstep.techniques.parallel.technique import Parallel

__all__ = ["Parallel"]
