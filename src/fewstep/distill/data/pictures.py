"""Pictures and videos as tensors of one size: read, resized to cover it, cropped about the centre."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence
from torch import Tensor

from fewstep.errors import FewstepError, InputError, MachineError

PICTURES = (".jpeg", ".jpg", ".png", ".webp")
ANIMATED = ".gif"
VIDEOS = (".mp4", ".webm", ANIMATED)

# A file; a decoded picture; {"bytes": …} as data sets hold files; or uint8 of shape (H, W, 3), or (F, H, W, 3).
Media: TypeAlias = Path | Image.Image | Mapping[str, Any] | NDArray[np.uint8]


def load(media: Media, name: str, size: tuple[int, ...], stride: int = 1) -> Tensor:
    """The picture or video, shape `size`, which is (3, H, W) or (3, F, H, W), float32 in [0, 1].

    Of a video every `stride`-th frame from its start on is taken, F in all.

    Raises:
        InputError: it is damaged, too short, or a video where a picture is wanted; the message begins with `name`.
        MachineError: what reads videos is not installed.
    """
    height, width = size[-2:]
    images = [_fitted(image, height, width) for image in _taken(media, name, size, stride)]
    frames = torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2).float() / 255
    return frames.reshape(size)


def check(media: Media, name: str, size: tuple[int, ...], stride: int = 1) -> None:
    """Raises what `load` would, in less time: JPEGs are read to their end, but only a small part is decoded."""
    for _ in _taken(media, name, size, stride, sketch=True):
        pass


def extra(package: str, what: str) -> Any:
    """An optional package, imported.

    Raises:
        MachineError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise MachineError(f"{what} needs the package {package!r}: pip install 'fewstep[data]'.") from None


def _taken(media: Media, name: str, size: tuple[int, ...], stride: int, sketch: bool = False) -> Iterator[Image.Image]:
    wanted = size[1] if len(size) == 4 else 1
    moving = _is_video(media)
    if moving != (wanted > 1):
        makes = f"videos of {wanted} frames" if wanted > 1 else "pictures"
        raise InputError(f"{name} is a {'video' if moving else 'picture'}, and this pipeline makes {makes}.")
    found, needed = 0, (wanted - 1) * stride + 1
    try:
        for image in islice(_frames(media, sketch), 0, needed, stride):
            found += 1
            yield image
    except FewstepError:
        raise
    except Exception as error:  # each decoder has errors of its own kinds
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} can't be read as a {'video' if moving else 'picture'}: {why}.") from None
    if found < wanted:
        raise InputError(f"{name} is too short: {wanted} frames at a stride of {stride} take {needed}.")


def _is_video(media: Media) -> bool:
    if isinstance(media, np.ndarray):
        return media.ndim == 4
    return isinstance(media, Path) and media.suffix.lower() in VIDEOS


def _frames(media: Media, sketch: bool) -> Iterator[Image.Image]:
    """Its frames, decoded one at a time. A `sketch` is as small as the decoder gives it."""
    if isinstance(media, np.ndarray):
        yield from map(Image.fromarray, media if media.ndim == 4 else [media])
    elif isinstance(media, Image.Image):
        yield media
    elif isinstance(media, Path) and media.suffix.lower() in VIDEOS and media.suffix.lower() != ANIMATED:
        yield from map(Image.fromarray, extra("imageio.v3", "Reading a video").imiter(media))
    else:
        place = BytesIO(media["bytes"]) if isinstance(media, Mapping) else media
        with Image.open(place) as image:
            if sketch:
                image.draft("RGB", (1, 1))
            for frame in ImageSequence.Iterator(image) if _is_video(media) else (image,):
                frame.load()
                yield frame


def _fitted(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """(height, width, 3); a photograph is turned as its camera says."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))
