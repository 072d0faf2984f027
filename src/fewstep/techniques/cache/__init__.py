"""Step caches: a gate says when to reuse, a predictor what stands in, a scope for what. `presets.py`: the papers'."""

from fewstep.techniques.cache.technique import Cache

__all__ = ["Cache"]
