"""Caches: a gate says when to reuse, a predictor what stands in, a scope for what (`presets.py`: the papers'); and
regions, which compute what moves."""

from fewstep.techniques.cache.regions import Regions
from fewstep.techniques.cache.technique import Cache

__all__ = ["Cache", "Regions"]
