"""What requests may say, and what answers look like: OpenAI's fields, and ours in the one field `fewstep`.

A field of OpenAI's that would change the result in a way that we can't is accepted only with the value that means "as
you like" ("auto"): nothing that a client asks for is dropped in silence.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fewstep.text import readable

PROMPT_MOST = 32_000  # characters, as OpenAI's
SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)


def _readable(text: str) -> str:
    if not text.strip() or not readable(text):
        raise ValueError("must be readable text of at least one word")
    return text


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _size(text: str) -> str:
    if text != "auto" and not SIZE.fullmatch(text):
        raise ValueError("must be 'auto' or WIDTHxHEIGHT in pixels, like 512x512")
    return text


def _seconds(value: Any) -> float:
    try:
        seconds = float(_no_flag(value))
    except (TypeError, OverflowError) as error:
        raise ValueError("must be a number of seconds") from error
    if not 0 < seconds < 86_400:
        raise ValueError("must be a number of seconds above 0")
    return seconds


Prompt = Annotated[str, Field(min_length=1, max_length=PROMPT_MOST), AfterValidator(_readable)]
Whole = Annotated[int, BeforeValidator(_no_flag)]
Number = Annotated[float, BeforeValidator(_no_flag), Field(allow_inf_nan=False)]
Size = Annotated[str, AfterValidator(_size)]
Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=str | float)]
AsYouLike = Literal["auto"] | None


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Extras(_Request):
    """What fewstep can be told beyond OpenAI's fields.

    Attributes:
        steps: denoising steps; without it, as many as the model is made for.
        seed: the same seed gives the same result; picture i of a request has `seed + i`.
        guidance: how closely the prompt is followed, on the model's own scale.
        recipe: the name of one that the operator lists for the model.
        strength: in (0, 1], how much of an edited picture may change.
    """

    steps: Annotated[Whole, Field(ge=1, le=1000)] | None = None
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] | None = None
    guidance: Annotated[Number, Field(ge=0, le=100)] | None = None
    recipe: str | None = None
    strength: Annotated[Number, Field(gt=0, le=1)] | None = None


class _Asked(_Request):
    """What every request to make something may say."""

    prompt: Prompt
    model: str | None = None
    size: Size | None = None
    user: str | None = None  # these two name the client's own user, and change nothing
    safety_identifier: str | None = None
    fewstep: Extras = Extras()


class ImageRequest(_Asked):
    """The body of POST /v1/images/generations."""

    n: Annotated[Whole, Field(ge=1, le=10)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[Whole, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: AsYouLike = None
    style: AsYouLike = None
    moderation: Literal["auto", "low"] | None = None
    stream: Literal[False] | None = None
    partial_images: Literal[0] | None = None


class EditRequest(ImageRequest):
    """The text fields of POST /v1/images/edits; `image` and `mask` come as files."""

    input_fidelity: None = None


class Reference(_Request):
    """A picture that a video starts from, as a data URL. Other URLs are never fetched."""

    image_url: str


class VideoRequest(_Asked):
    """The body of POST /v1/videos."""

    seconds: Seconds | None = None
    input_reference: Reference | None = None


class Picture(BaseModel):
    """One picture of an answer: the bytes in base64, or where to get them."""

    b64_json: str | None = None
    url: str | None = None


class Made(BaseModel):
    """What makes a result again: the seed of its first picture, and the recipe that was on."""

    seed: int
    recipe: str


class ImagesResponse(BaseModel):
    """The answer to a request for pictures."""

    created: int
    data: list[Picture]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    fewstep: Made


class VideoFailure(BaseModel):
    """Why a video was not made."""

    code: str
    message: str


class Video(BaseModel):
    """OpenAI's video object, and nothing beyond it."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    size: str
    seconds: str
    remixed_from_video_id: str | None = None
    error: VideoFailure | None


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """The answer to DELETE."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Abilities(BaseModel):
    """What a model makes: its own size and frames, what sizes are multiples of, and the recipes that may be named."""

    makes: Literal["image", "video"]
    size: str | None
    multiple: int
    frames: int | None
    fps: int | None
    recipes: list[str]


class ModelCard(BaseModel):
    """A model that is served; `fewstep` is None until it is loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["fewstep"] = "fewstep"
    fewstep: Abilities | None


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def width_height(size: str | None) -> tuple[int, int] | None:
    """Pixels of a checked size; None for "auto"."""
    if size is None or size == "auto":
        return None
    width, height = size.split("x")
    return int(width), int(height)
