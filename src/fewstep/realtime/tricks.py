"""What can be switched in a live session, beside the techniques of its model: names, and what they do in a sentence."""

from __future__ import annotations

WINDOW, OVERLAP, SMALL, CHOOSE = "window", "overlap", "small_decoder", "choose"
REGIONS, ADAPT = "regions", "adapt"
SAYS = {
    WINDOW: "Keys and values of the past are kept, not computed anew for every chunk.",
    OVERLAP: "A chunk is decoded while the next one is denoised.",
    SMALL: "A small decoder that was distilled from the VAE draws the frames.",
    CHOOSE: "A prompt's first chunk is made four times; the one that answers best, as the model tells, goes on.",
    REGIONS: "After a chunk's first step only what moves is computed; the rest stays as it was.",
    ADAPT: "Regions, fewer steps, then fewer frames a second when time runs short; more again when there is enough.",
}
OFF = frozenset({REGIONS})  # until somebody switches them on


def tricks_of(small: bool, parts: bool) -> dict[str, str]:
    """Those of a model that has a small decoder or none, and whose tokens can be computed in part or not."""
    there = {SMALL: small, REGIONS: parts}
    return {name: says for name, says in SAYS.items() if there.get(name, True)}
