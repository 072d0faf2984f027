"""How the work of one model is shared among processes, as numbers.

Every field says into how many parts one kind of work is cut:

- `data`: prompts of a call; nothing is sent.
- `guidance`: the branches of guidance, of which two are usual; one small exchange a step.
- `ring`: tokens, whose keys and values go round (arXiv 2310.01889).
- `ulysses`: tokens, which are exchanged for heads around each attention (arXiv 2309.14509).
- `tensor`: the features of every layer (arXiv 1909.08053); two sums over all tokens a block.
- `vae`: what is decoded, among all processes that there are; it follows the denoising, so it multiplies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod

from fewstep.errors import bad_value

# The dimensions of the mesh, the outermost first: neighbours in the last one have neighbouring ranks, and so the
# fastest links. What is sent grows from left to right.
DIMENSIONS = ("data", "guidance", "ring", "ulysses", "tensor")


@dataclass(frozen=True)
class Layout:
    """Parts of each kind of work; 1 is "not shared"."""

    data: int = 1
    guidance: int = 1
    ring: int = 1
    ulysses: int = 1
    tensor: int = 1
    vae: int = 1

    @property
    def size(self) -> int:
        """Processes that it takes: the product of all parts but the decoder's."""
        return prod(getattr(self, name) for name in DIMENSIONS)

    @property
    def sequence(self) -> int:
        """Into how many parts the tokens are cut."""
        return self.ring * self.ulysses

    def faults(self) -> list[str]:
        """What is wrong with the numbers by themselves, one sentence each."""
        wrong = [f.name for f in fields(self) if not (type(value := getattr(self, f.name)) is int and value >= 1)]
        found = [bad_value(name, "a parallel layout", "a whole number above 0", getattr(self, name)) for name in wrong]
        if not wrong and self.vae > 1 and self.vae > self.size:
            found.append(f"A parallel layout of {self.size} processes can't decode in {self.vae} parts: {self}.")
        return found

    def __str__(self) -> str:
        """`guidance 2, ulysses 2, vae 4`: only what is shared."""
        parts = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return ", ".join(f"{name} {value}" for name, value in parts if value != 1) or "one process"


def chosen(processes: int, heads: int, guided: bool, decodes: bool, tensor: int = 1) -> tuple[Layout, str]:
    """The layout for so many processes, and why: guidance first, then Ulysses as far as the heads go, then the ring.

    Guidance sends least: one prediction a step. Ulysses sends a share of each token four times an attention, and less
    the more processes there are; the ring sends all keys and values past everyone, but needs no heads. A decoder is
    always shared. Before all that the layers, which send most, are cut into so many parts as memory asks for:
    `tensor`, see `parts_that_fit`.
    """
    left, heads = processes // tensor, heads // tensor
    guidance = 2 if guided and left % 2 == 0 else 1
    rest = left // guidance
    ulysses = max(part for part in range(1, rest + 1) if rest % part == 0 and heads % part == 0)
    layout = Layout(1, guidance, rest // ulysses, ulysses, tensor, processes if decodes else 1)
    layers = f"layers in {tensor}, since they are too large for one; " if tensor > 1 else ""
    branches = "it has two branches" if guided else "it has one branch"
    tokens = f"tokens in {rest}: {ulysses} of them by the {heads} heads, {layout.ring} in a ring"
    why = f"{processes} processes: {layers}guidance in {guidance} ({branches}), and {tokens}."
    return layout, f"{why} The decoder in {layout.vae}."


def parts_that_fit(processes: int, heads: int, weights: float, room: float) -> int:
    """Into how few parts layers of so many bytes are cut until one has room; as many as can be where none has. They
    divide the processes and the heads."""
    parts = [part for part in range(1, processes + 1) if processes % part == 0 and heads % part == 0]
    return next((part for part in parts if weights / part <= room), parts[-1])
