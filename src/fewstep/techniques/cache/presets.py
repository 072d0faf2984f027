"""The published caches as points of gate × predictor × scope, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Fields of a `Cache`, and where they come from."""

    fields: Mapping[str, Any]
    paper: str


PRESETS: Mapping[str, Preset] = {
    "planned": Preset({"gate": "schedule", "predictor": "linear", "scope": "output"}, "ours"),
    "teacache": Preset({"gate": "teacache", "predictor": "last", "scope": "blocks", "threshold": 0.1}, "2411.19108"),
    "first_block": Preset(
        {"gate": "first_block", "predictor": "last", "scope": "blocks", "front": 1, "threshold": 0.08}, "ParaAttention"
    ),
    "dbcache": Preset(
        {
            "gate": "first_block",
            "predictor": "last",
            "scope": "blocks",
            "front": 8,
            "threshold": 0.08,
            "warmup": 0.1,
            "longest": 8,
        },
        "cache-dit",
    ),
    "magcache": Preset(
        {"gate": "magcache", "predictor": "last", "scope": "blocks", "threshold": 0.06, "warmup": 0.2, "longest": 3},
        "2506.09045",
    ),
    "easycache": Preset(
        {"gate": "easycache", "predictor": "last", "scope": "output", "threshold": 0.05, "warmup": 0.1}, "2507.02860"
    ),
    "seacache": Preset({"gate": "seacache", "predictor": "last", "scope": "blocks", "threshold": 0.2}, "2602.18993"),
    "taylorseer": Preset(
        {"gate": "always", "predictor": "quadratic", "scope": "blocks", "longest": 3, "warmup": 0.1}, "2503.06923"
    ),
    "pab": Preset(
        {"gate": "always", "predictor": "last", "scope": "attention", "longest": 1, "warmup": 0.1}, "2408.12588"
    ),
    "cfg_cache": Preset(
        {"gate": "always", "predictor": "last", "scope": "guidance", "longest": 4, "warmup": 0.1}, "2410.19355"
    ),
}
