"""What the live socket carries: the sessions it shows, and its messages as typed values. Nothing here waits or sends.

The protocol is written down in docs/live-protocol.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fewstep.errors import InputError, bad_value
from fewstep.realtime.told import Chunk

Source: TypeAlias = Literal["live", "teacher"]
Format: TypeAlias = Literal["jpeg", "webp"]
Figures: TypeAlias = Mapping[str, float | int | str | None]

PROMPT_CHARACTERS = 2000
SMALL, FINE, GOOD = (
    256 * 256,
    97,
    90,
)  # pixels up to which a picture is small, and the qualities: small ones are enlarged
# Colours at full resolution: small pictures are shown large, and a blurred edge would be seen.
ENCODERS: dict[Format, dict[str, Any]] = {"jpeg": {"subsampling": 0}, "webp": {"method": 2}}


# ---------------------------------------------------------------------------------------------------------------------
# Sessions


class Busy(RuntimeError):
    """There are too many viewers already."""


class Live(Protocol):
    """One viewer's session. Its calls may come from any thread; iterating waits for the next chunk."""

    @property
    def fps(self) -> float: ...

    @property
    def tricks(self) -> Mapping[str, bool]:
        """What can be switched, and whether it is on."""

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks without end, until `close`."""

    def prompt(self, text: str) -> None:
        """Show this from the next chunk on; an InputError where the text is none that can be shown."""

    def switch(self, trick: str, on: bool) -> None:
        """From the next chunk on; an InputError for an unknown trick."""

    def stats(self) -> Figures:
        """fps, first_frame_s, jitter_ms, missed, steps, accuracy (None: unknown), and what else there is to tell."""

    def close(self) -> None:
        """End it, and whoever iterates; a second call does nothing."""


class Studio(Protocol):
    """What a server holds to open sessions.

    Attributes:
        name: of the model.
        examples: prompts to offer.
        tricks: name to one sentence of what it does.
    """

    @property
    def name(self) -> str: ...

    @property
    def examples(self) -> Sequence[str]: ...

    @property
    def tricks(self) -> Mapping[str, str]: ...

    def open(self, prompt: str, *, seed: int | None) -> Live:
        """A new viewer's session; `Busy` when there are too many."""

    def teacher(self, prompt: str, *, seed: int | None) -> Iterator[Chunk] | None:
        """The slow model of many steps, for comparison; None where there is none."""


# ---------------------------------------------------------------------------------------------------------------------
# From the viewer


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Prompt = Annotated[str, Field(max_length=PROMPT_CHARACTERS)]


class Start(_Message):
    """A new session, in place of the one before."""

    type: Literal["start"]
    prompt: Prompt
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None  # as far as JavaScript counts exactly
    format: Format = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100)] | None = None


class ShowPrompt(_Message):
    """Another prompt, in mid-stream."""

    type: Literal["prompt"]
    prompt: Prompt


class Switch(_Message):
    """A trick on or off."""

    type: Literal["switch"]
    trick: Annotated[str, Field(max_length=100)]
    on: bool


class Teacher(_Message):
    """The teacher beside the session, or no longer."""

    type: Literal["teacher"]
    on: bool


class Stop(_Message):
    """The end of the session; the socket stays."""

    type: Literal["stop"]


class Shown(_Message):
    """The chunk that begins with frame `index`, and all before it, are done with: there is room for more."""

    type: Literal["shown"]
    index: Annotated[int, Field(ge=0, lt=2**53)]
    source: Source = "live"


class Ping(_Message):
    """Answered at once, for whoever measures the way there and back."""

    type: Literal["ping"]
    id: Annotated[int, Field(ge=0, lt=2**53)] = 0


Message: TypeAlias = Start | ShowPrompt | Switch | Teacher | Stop | Shown | Ping
_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


class Malformed(InputError):
    """A message that is none of the protocol's; `param` is the field that is wrong, where it is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        self.param = param
        super().__init__(message)


def read(text: str) -> Message:
    """A viewer's message.

    Raises:
        Malformed: not JSON, an unknown type, or fields that it may not have.
    """
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = [str(part) for part in first["loc"]]
        param = where[-1] if len(where) > 1 else None
        field = f"the {param!r} of " if param else ""
        owner = f"a {where[0]!r} message" if where else "a live message"
        raise Malformed(f"Can't read {field}{owner}: {first['msg']}.", param) from None


def check_prompt(text: str) -> str:
    """The prompt, if there is more in it than space.

    Raises:
        InputError: there is not.
    """
    if not text.strip():
        raise InputError(bad_value("prompt", "a live session", "a text of at least one word", text))
    return text


# ---------------------------------------------------------------------------------------------------------------------
# To the viewer


def failure(
    message: str, code: str, *, param: str | None = None, kind: str = "invalid_request_error"
) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"type": "error", "error": {"message": message, "type": kind, "param": param, "code": code}}


def plain(figures: Figures) -> dict[str, Any]:
    """Numbers that JSON has no word for (NaN, infinity) become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


def encode(frames: NDArray[np.uint8], form: Format, quality: int | None) -> list[bytes]:
    """Each frame as a picture file; of no given quality, in that which its size deserves."""
    if quality is None:
        quality = FINE if frames.shape[1] * frames.shape[2] <= SMALL else GOOD
    return [_encoded(frame, form, quality) for frame in frames]


def _encoded(frame: NDArray[np.uint8], form: Format, quality: int) -> bytes:
    file = BytesIO()
    Image.fromarray(frame).save(file, form, quality=quality, **ENCODERS[form])
    return file.getvalue()


def pack(source: Source, chunk: Chunk, pictures: Sequence[bytes], form: Format, waited_ms: float) -> bytes:
    """A chunk as one binary message: the length of its header in 4 big-endian bytes, the header in JSON, pictures."""
    header = {
        "source": source,
        "index": chunk.index,
        "due": chunk.due,
        "prompt": chunk.prompt,
        "sizes": [len(picture) for picture in pictures],
        "format": form,
        "waited_ms": round(waited_ms, 1),
        "work": plain(chunk.work),
    }
    told = json.dumps(header, allow_nan=False).encode()
    return b"".join([len(told).to_bytes(4, "big"), told, *pictures])
