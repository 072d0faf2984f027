"""Pictures and videos as bytes, both ways. What a client sends is decoded only when it is small and of a known kind."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from fewstep.server.errors import invalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Write frames (n, height, width, 3) as H.264, in the one pixel format that every player reads.

    H.264 halves the colour planes, so an odd row or column is repeated once. The file is on the disk when this returns.
    """
    import av

    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    frames = np.pad(frames, odd, mode="edge")
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    with path.open("rb") as file:
        os.fsync(file.fileno())


def first_frame(path: Path) -> bytes:
    """The first frame of a video as WebP."""
    import av

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return encoded(Image.fromarray(frame), "webp", 90)
