"""Pictures and clips that pipelines give, as the bytes of a file."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fewstep.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

MP4 = ".mp4"
MOVING = (".gif", ".webp", MP4)  # what holds a clip
STILL = (".png", ".jpg", ".jpeg", ".webp", ".gif")  # what holds a picture
SUFFIXES = (*STILL, MP4)
FPS = 16  # of a clip


def fitting(moves: bool) -> tuple[str, ...]:
    """What files of clips, or of pictures, may end in here: MP4 is written by PyAV, where that is installed."""
    known = MOVING if moves else STILL
    return tuple(suffix for suffix in known if suffix != MP4 or find_spec("av") is not None)


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
    """The bytes of a file that ends in `suffix`: one of `STILL` for one frame, of `MOVING` for a clip."""
    import numpy as np
    from PIL import Image

    if suffix.lower() == MP4:
        with TemporaryDirectory() as aside:
            path = Path(aside, f"clip{MP4}")
            write_mp4(path, np.stack([np.asarray(frame.convert("RGB")) for frame in frames]), FPS)
            return path.read_bytes()
    buffer = io.BytesIO()
    kind = Image.registered_extensions()[suffix.lower()]
    clip = {"save_all": True, "append_images": frames[1:], "duration": 1000 // FPS, "loop": 0}
    frames[0].save(buffer, kind, **(clip if len(frames) > 1 else {}))
    return buffer.getvalue()


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Write frames (n, height, width, 3) as H.264, in the one pixel format that every player reads.

    H.264 halves the colour planes, so an odd row or column is repeated once. The file is on the disk when this returns.
    """
    import av
    import numpy as np

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
