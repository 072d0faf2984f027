"""Pictures and clips that pipelines give, as the bytes of a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fewstep.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MOVING = (".gif", ".webp")  # what holds a clip
SUFFIXES = (".png", ".jpg", ".jpeg", *MOVING)
FPS = 16  # of a clip


def shown(output: Any, model: str) -> list[list[Image]]:
    """The frames of each result of a call that was asked for PIL; a picture is one frame.

    Raises:
        InputError: there are no pictures in it; `model` is named.
    """
    from PIL.Image import Image

    results = [[picture] for picture in getattr(output, "images", None) or []]
    results = results or [list(frames) for frames in getattr(output, "frames", None) or []]
    if not results or not all(frames and isinstance(frames[0], Image) for frames in results):
        raise InputError(f"{model} gives no pictures ({type(output).__name__}); name a text-to-image pipeline.")
    return results


def encoded(frames: Sequence[Image], suffix: str) -> bytes:
    """The bytes of a file that ends in `suffix`, one of `SUFFIXES`; several frames need one of `MOVING`."""
    from PIL import Image

    buffer = io.BytesIO()
    kind = Image.registered_extensions()[suffix.lower()]
    clip = {"save_all": True, "append_images": frames[1:], "duration": 1000 // FPS, "loop": 0}
    frames[0].save(buffer, kind, **(clip if len(frames) > 1 else {}))
    return buffer.getvalue()
