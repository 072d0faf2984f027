"""What one call of a pipeline computes, counted from shapes: tokens, matrices, attention, pixels.

Nothing here knows of devices. A multiplication with an addition counts as two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fewstep.errors import InputError, bad_value

BF16 = 2  # bytes

# Pairs of a query and a key in one attention, from the image's tokens and the text's.
PAIRS: Mapping[str, Callable[[int, int], int]] = MappingProxyType(
    {
        "joint": lambda image, text: (image + text) ** 2,
        "self": lambda image, text: image**2,
        "cross": lambda image, text: image * text,
    }
)
EXCHANGED = ("joint", "self")  # what tokens on other devices take part in; the text's keys are on every device


@dataclass(frozen=True)
class Blocks:
    """Blocks of one kind.

    Attributes:
        count: how many follow one another.
        image, text: weights that one token of the image (or video), of the text, is multiplied with in one block.
        weights: of one block, modulation included. Less than image + text where both streams use the same.
        attention: the attentions of one block, keys of `PAIRS`.
        sums: how often tensor parallelism adds up over its devices in one block: once after each pair of matrices of
            which the first is cut by columns and the second by rows (arXiv 1909.08053).
    """

    count: int
    image: int
    text: int
    weights: int
    attention: tuple[str, ...]
    sums: int

    @property
    def exchanged(self) -> int:
        """Attentions of one block in which all tokens of the image meet."""
        return sum(name in EXCHANGED for name in self.attention)

    def tokens(self, image: int, text: int) -> int:
        """Tokens that go through the block: those of the text only where it is a stream of its own."""
        return image + text if "joint" in self.attention else image


@dataclass(frozen=True)
class Decoder:
    """What turns latents into pixels.

    Attributes:
        flops: operations for one pixel of one frame.
        values: numbers that one pixel has in the widest layer.
        frames: of a video that are decoded at once.
    """

    flops: float
    values: float
    frames: int = 1


@dataclass(frozen=True)
class Network:
    """A pipeline, whatever the size of its picture.

    Attributes:
        name: what it is called.
        width, heads, hidden: features of a token, heads of an attention, features inside the MLP.
        blocks: of the denoiser, in running order.
        span: frames, rows and columns of pixels that one token stands for.
        values: numbers that the denoiser predicts for one token.
        text_tokens: of one prompt.
        encoders: weights of all text encoders.
        decoder: of the latents.
        call: the call's usual height, width, frames, steps, branches.
        experts: denoisers of this kind in memory, of which one works at a time.
        source: where the numbers are from.
    """

    name: str
    width: int
    heads: int
    hidden: int
    blocks: tuple[Blocks, ...]
    span: tuple[int, int, int]
    values: int
    text_tokens: int
    encoders: int
    decoder: Decoder
    call: Mapping[str, int]
    experts: int = 1
    source: str = ""

    @property
    def weights(self) -> int:
        """Of one denoiser."""
        return sum(one.count * one.weights for one in self.blocks)

    @property
    def depth(self) -> int:
        """Blocks of one denoiser."""
        return sum(one.count for one in self.blocks)

    @property
    def exchanged(self) -> int:
        """Attentions of one denoiser in which all tokens of the image meet."""
        return sum(one.count * one.exchanged for one in self.blocks)


@dataclass(frozen=True)
class Work:
    """One call of a pipeline.

    Attributes:
        network: what is called.
        height, width, frames: of what is made, in pixels; a picture has one frame.
        steps: of denoising.
        branches: of guidance: 2 where each step asks the denoiser with the prompt and without, 1 where guidance is
            distilled into the model or off.
        batch: pictures or clips at once.
        weight_bytes: of one weight.
    """

    network: Network
    height: int
    width: int
    frames: int
    steps: int
    branches: int
    batch: int = 1
    weight_bytes: float = BF16

    @property
    def image_tokens(self) -> int:
        """Of one picture or clip. The first frame of a clip has a latent frame of its own (causal decoders)."""
        frames, rows, columns = self.network.span
        return ((self.frames - 1) // frames + 1) * (self.height // rows) * (self.width // columns)

    @property
    def text_tokens(self) -> int:
        return self.network.text_tokens

    @property
    def pixels(self) -> int:
        return self.frames * self.height * self.width

    @property
    def linear_flops(self) -> float:
        """Of the matrices, for one branch of one picture in one step: 2 operations a weight and token."""
        return 2 * sum(
            one.count * (one.image * self.image_tokens + one.text * self.text_tokens) for one in self.network.blocks
        )

    @property
    def attention_flops(self) -> float:
        """Of the attentions, likewise: 4 x width a pair of tokens, half for the score, half for the sum of values."""
        return self._attention(*PAIRS)

    @property
    def exchanged_flops(self) -> float:
        """Of those attentions in which all tokens of the image meet."""
        return self._attention(*EXCHANGED)

    def _attention(self, *kinds: str) -> float:
        pairs = sum(
            one.count * PAIRS[kind](self.image_tokens, self.text_tokens)
            for one in self.network.blocks
            for kind in one.attention
            if kind in kinds
        )
        return 4.0 * self.network.width * pairs

    @property
    def features(self) -> float:
        """Features of all tokens in all blocks, for one branch of one picture in one step."""
        tokens = sum(one.count * one.tokens(self.image_tokens, self.text_tokens) for one in self.network.blocks)
        return float(tokens * self.network.width)

    @property
    def prediction(self) -> int:
        """Bytes that the denoiser predicts, for one branch of one picture."""
        return self.image_tokens * self.network.values * BF16


def work_of(network: Network, **given: int | None) -> Work:
    """The work of a call: what is given of height, width, frames, steps, branches, batch; else the usual.

    Raises:
        InputError: a size that is not whole tokens, or a number that is no count.
    """
    call: dict[str, Any] = {**network.call, **{name: value for name, value in given.items() if value is not None}}
    for name, value in call.items():
        if type(value) is not int or value < 1:
            raise InputError(bad_value(name, network.name, "a whole number from 1 on", value))
    for name, span in zip(("height", "width"), network.span[1:], strict=True):
        if call[name] % span:
            raise InputError(bad_value(name, network.name, f"a multiple of {span}", call[name]))
    if call["frames"] > 1 and network.span[0] == 1:
        raise InputError(bad_value("frames", network.name, "1, for it makes pictures", call["frames"]))
    return Work(network, **call)
