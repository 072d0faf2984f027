"""A labelled grid of samples as one PNG, a row a prompt. What it shows is written in it, so it can be read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fewstep.errors import InputError
from fewstep.files import replacing

Array = NDArray[Any]

SMALLEST, LARGEST = 112, 256  # pixels of a sample's longer side as it is shown
LABEL, HEAD, GAP = 190, 54, 6  # pixels: width of the prompts, height of title and column names, space between samples
LINE = 15  # height of a line of a prompt
INK, MUTED, PAPER = "#1f2933", "#6b7785", "#ffffff"
KEY = "fewstep"  # of the text in the PNG that says what is where


@dataclass(frozen=True, eq=False)
class Grid:
    """What a PNG shows.

    Attributes:
        prompts: of the rows.
        columns: their names.
        tiles: (prompts, columns, height, width, 3) uint8, at the size at which they are shown.
        frames: how many columns in a row belong to one sample: 1, or 3 of a video.
    """

    title: str
    prompts: tuple[str, ...]
    columns: tuple[str, ...]
    tiles: Array
    frames: int = 1


def grid_of(title: str, prompts: Sequence[str], samples: Array) -> Grid:
    """A column a draw, or three where samples are videos: their first, middle and last frame.

    samples: (prompts, draws, height, width, 3) or (prompts, draws, frames, height, width, 3), uint8.
    """
    draws, video = samples.shape[1], samples.ndim == 6
    if video:
        last = samples.shape[2] - 1
        samples = samples[:, :, [0, (last + 1) // 2, last]]
        samples = samples.reshape(len(prompts), 3 * draws, *samples.shape[3:])
    parts = ("first", "middle", "last") if video else ("",)
    columns = tuple(f"noise {draw + 1} {part}".strip() for draw in range(draws) for part in parts)
    tiles = np.stack([np.stack([_shown(sample) for sample in row]) for row in samples])
    return Grid(title, tuple(prompts), columns, tiles, len(parts))


def save(grid: Grid, path: Path | str) -> None:
    """Write the PNG.

    Raises:
        MachineError: the disk is full or the place can't be written to.
    """
    rows, columns, height, width = grid.tiles.shape[:4]
    size = (LABEL + columns * (width + GAP), HEAD + rows * (height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), grid.title, fill=INK, font=_font(15))
    for column, name in enumerate(grid.columns):
        draw.text((_corner(grid, 0, column)[0], HEAD - 20), name, fill=MUTED, font=_font(11))
    for row, prompt in enumerate(grid.prompts):
        for number, line in enumerate(_wrapped(prompt, LABEL - 5 * GAP, height // LINE)):
            draw.text((GAP, _corner(grid, row, 0)[1] + LINE * number), line, fill=INK, font=_font(11))
        for column in range(columns):
            sheet.paste(Image.fromarray(grid.tiles[row, column]), _corner(grid, row, column))
    told = {"title": grid.title, "prompts": grid.prompts, "columns": grid.columns, "frames": grid.frames}
    info = PngInfo()
    info.add_itxt(KEY, json.dumps({**told, "tile": [height, width]}))
    with replacing(path) as aside:
        sheet.save(aside, format="png", pnginfo=info)


def read(path: Path | str) -> Grid:
    """The grid in a PNG that `save` wrote.

    Raises:
        InputError: it is no such file.
    """
    try:
        with Image.open(path) as sheet:
            told = json.loads(sheet.text[KEY])  # type: ignore[attr-defined]
            pixels = np.asarray(sheet.convert("RGB"))
    except (OSError, AttributeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no sample grid ({type(error).__name__}): draw it again.") from None
    (height, width), names = told["tile"], (tuple(told["prompts"]), tuple(told["columns"]))
    empty = np.empty((len(names[0]), len(names[1]), height, width, 3), np.uint8)
    grid = Grid(told["title"], *names, empty, told["frames"])
    for row in range(len(grid.prompts)):
        for column in range(len(grid.columns)):
            x, y = _corner(grid, row, column)
            empty[row, column] = pixels[y : y + height, x : x + width]
    return grid


def _corner(grid: Grid, row: int, column: int) -> tuple[int, int]:
    height, width = grid.tiles.shape[2:4]
    return LABEL + column * (width + GAP), HEAD + row * (height + GAP)


def _shown(sample: Array) -> Array:
    """Small samples grow by whole factors, so that a pixel stays a square; large ones shrink."""
    side = max(sample.shape[:2])
    if SMALLEST <= side <= LARGEST:
        return sample
    if side < SMALLEST:
        factor = -(-SMALLEST // side)
        return sample.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = (max(1, round(size * LARGEST / side)) for size in sample.shape[:2])
    return np.asarray(Image.fromarray(sample).resize((width, height), Image.Resampling.LANCZOS))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _wrapped(text: str, width: int, lines: int) -> list[str]:
    """The text in lines of at most `width` pixels, cut with an ellipsis after so many."""
    found = [""]
    for word in text.split():
        longer = f"{found[-1]} {word}".strip()
        if found[-1] and _font(11).getlength(longer) > width:
            found.append(word)
        else:
            found[-1] = longer
    return found if len(found) <= lines else [*found[: lines - 1], f"{found[lines - 1]} …"]
