"""Ready-made recipes, as data. `accelerate(pipe, "quality")` takes one by its name."""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, list[Any]] = {
    # The same pictures, up to rounding.
    "exact": ["compile"],
    # What 16 bits cost, and nothing else.
    "half": ["precision", "compile"],
    # Skips what hardly changes; the first call calibrates.
    "quality": ["precision", {"cache": {"preset": "teacache", "threshold": 0.05}}, "compile"],
    # All that needs no student.
    "fast": ["precision", "quantize", {"cache": {"preset": "teacache", "threshold": 0.15}}, "compile"],
}
