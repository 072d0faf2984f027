"""Pictures and videos as bytes, both ways. What a client sends is decoded only when it is small and of a known kind."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fewstep.server.errors import invalid

TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "mp4": "video/mp4"}
FORMATS = ("PNG", "JPEG", "WEBP")  # that clients may send
PIXELS_MOST = 50_000_000  # of a picture that clients send: a small file can hold a picture that fills the memory
DATA_URL = "data:image/"


def encoded(picture: Image.Image, suffix: str, compression: int | None) -> bytes:
    """The bytes of a picture. `compression` in [0, 100] is the quality of JPEG and WebP; PNG loses nothing."""
    buffer = io.BytesIO()
    quality = {} if suffix == "png" or compression is None else {"quality": compression}
    picture.convert("RGB").save(buffer, suffix.upper(), **quality)
    return buffer.getvalue()


def picture_of(data: bytes, name: str) -> Image.Image:
    """The picture in what a client sent, as RGBA.

    Raises:
        ApiError: 400, no picture of a known format, damaged, or too large; `name` is the field's.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > PIXELS_MOST:
                size = f"{opened.width}x{opened.height}"
                raise invalid(f"The {name!r} must have at most {PIXELS_MOST} pixels. Got {size}.", name)
            return opened.convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        raise invalid(f"The {name!r} must be a picture: {', '.join(FORMATS)}.", name) from None


def from_data_url(url: str, name: str) -> bytes:
    """The bytes in a data URL of a picture.

    Raises:
        ApiError: 400, another kind of URL, which is never fetched, or no base64.
    """
    head, _, data = url.partition(",")
    if not (head.startswith(DATA_URL) and head.endswith(";base64")):
        message = f"The {name!r} must be a data URL like {DATA_URL}png;base64,…: other URLs are not fetched."
        raise invalid(message, name)
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise invalid(f"The {name!r} must hold base64.", name) from None


def repaint_mask(mask: Image.Image) -> Image.Image:
    """OpenAI's mask, whose transparent parts are to be repainted, as diffusers': white is repainted, black stays."""
    return mask.getchannel("A").point(lambda alpha: 255 if alpha == 0 else 0)


def first_frame(path: Path) -> bytes:
    """The first frame of a video as WebP."""
    import av

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return encoded(Image.fromarray(frame), "webp", 90)
