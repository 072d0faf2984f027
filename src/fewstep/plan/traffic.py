"""What each way of sharing sends: bytes that leave one device in one step, and in how many collectives.

`p` below is the devices of one way, `S` tokens of one sample as that device holds them, `w` the width of what it holds
(both already divided by the other ways), 2 the bytes of a number. Each function gives one denoiser call's `Traffic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.plan.work import BF16, Work

if TYPE_CHECKING:
    from fewstep.layout import Layout

PIXEL = 3  # values


@dataclass(frozen=True)
class Traffic:
    """Of one way of sharing: bytes that leave a device, and the collectives that carry them."""

    bytes: float = 0.0
    collectives: int = 0


def guidance(work: Work, layout: Layout, samples: float) -> Traffic:
    """All-gather of the predictions, once a step: `(p - 1) x prediction`, for each branch that is computed here.

    Both branches' devices need both predictions for the next latents. `samples` are those of one device.
    """
    p = layout.guidance
    return Traffic((p - 1) * work.prediction * samples, int(p > 1))


def ulysses(work: Work, layout: Layout, samples: float) -> Traffic:
    """Four all-to-alls an attention (q, k, v before, the result after): `4 (p - 1)/p x S w x 2` (arXiv 2309.14509)."""
    p = layout.ulysses
    sent = 4 * (p - 1) / p * _features(work, layout) * BF16 * samples
    return Traffic(sent, 4 * work.network.exchanged if p > 1 else 0)


def ring(work: Work, layout: Layout, samples: float) -> Traffic:
    """Keys and values passed on `p - 1` times an attention: `(p - 1) x 2 S w x 2` (arXiv 2310.01889)."""
    p = layout.ring
    return Traffic((p - 1) * 2 * _features(work, layout) * BF16 * samples, (p - 1) * work.network.exchanged)


def tensor(work: Work, layout: Layout, samples: float) -> Traffic:
    """All-reduces of the tokens at full width: `2 (p - 1)/p x S w x 2` each (arXiv 1909.08053).

    Two a block: after attention and after the MLP; one where both run side by side, three with cross attention.
    """
    p, network = layout.tensor, work.network
    tokens = sum(one.count * one.sums * one.tokens(work.image_tokens, work.text_tokens) for one in network.blocks)
    sums = sum(one.count * one.sums for one in network.blocks)
    sent = 2 * (p - 1) / p * tokens * network.width / layout.sequence * BF16 * samples
    return Traffic(sent, sums if p > 1 else 0)


def gather(work: Work, layout: Layout, samples: float) -> Traffic:
    """All-gather of the tokens that each kind of blocks gives, so that what stands between them is computed as ever:
    `(p - 1)/p x S w x 2` a kind."""
    p, network = layout.sequence, work.network
    tokens = sum(one.tokens(work.image_tokens, work.text_tokens) for one in network.blocks)
    sent = (p - 1) / p * tokens * network.width * BF16 * samples
    return Traffic(sent, len(network.blocks) if p > 1 else 0)


def decoded(work: Work, layout: Layout) -> Traffic:
    """All-gather of the pixels that each decoded, once a call of the pipeline: `(p - 1)/p x pixels x 3 x 2`."""
    p = layout.vae
    return Traffic((p - 1) / p * work.pixels * PIXEL * BF16 * work.batch, int(p > 1))


def _features(work: Work, layout: Layout) -> float:
    """Numbers in one of q, k, v, of all attentions that tokens of other devices take part in, on one device."""
    tokens = sum(
        one.count * one.exchanged * one.tokens(work.image_tokens, work.text_tokens) for one in work.network.blocks
    )
    return tokens * work.network.width / (layout.sequence * layout.tensor)
