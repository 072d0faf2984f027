"""Where prompts come from: a list, a text file with one a line, or a function that makes as many as are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TypeAlias

from fewstep.errors import InputError, bad_value

PromptSource: TypeAlias = Sequence[str] | str | Path | Callable[[int, int], Sequence[str]]


def read_prompts(source: PromptSource, n: int, seed: int = 0) -> list[str]:
    """n prompts. A list or file that holds fewer is repeated; a function is called with (n, seed).

    Raises:
        InputError: no such file, no prompt in it, a prompt that is not text, or a function that gave another number.
    """
    if callable(source):
        prompts = list(source(n, seed))
        if len(prompts) != n:
            raise InputError(bad_value("prompts", "the source of prompts", f"{n} prompts, as asked for", len(prompts)))
    else:
        known = _lines(Path(source)) if isinstance(source, str | Path) else list(source)
        prompts = list(islice(cycle(known), n))
    if not prompts:
        raise InputError(bad_value("prompts", "the source of prompts", "at least one prompt", []))
    wrong = next((prompt for prompt in prompts if not isinstance(prompt, str)), None)
    if wrong is not None:
        raise InputError(bad_value("prompts", "the source of prompts", "text", wrong))
    return prompts


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Prompts must be in a text file, one a line. Could not read {path}: {error}.") from None
    return [line.strip() for line in lines if line.strip()]
