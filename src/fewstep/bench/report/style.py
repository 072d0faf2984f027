"""The colours and the letters of every chart."""

from __future__ import annotations

from typing import Any

INK, MUTED, LINE, PAPER = "#1f2933", "#6b7785", "#e3e7ec", "#ffffff"
STYLE: Any = {  # for matplotlib.rc_context
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: small, sharp, and found by a search in the page
    "svg.hashsalt": "fewstep",  # the same report gives the same bytes
    "axes.edgecolor": LINE,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
}
