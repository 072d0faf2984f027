"""The models that come with fewstep: what they are, and how to get one out as a plain diffusers folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import InputError
from fewstep.files import read_json, replacing
from fewstep.models.load import INDEX, ZOO, component_folders, copy_pipeline
from fewstep.models.manifest import Manifest


def names(root: Path = ZOO) -> list[str]:
    """The models under `root`, sorted."""
    return sorted(folder.name for folder in root.glob("*") if (folder / INDEX).exists())


NAMES = tuple(names())


@dataclass(frozen=True)
class Info:
    """A model of the zoo.

    Attributes:
        name: as in `zoo:NAME`.
        what: one sentence on what it does.
        pipeline: its diffusers class.
        steps: denoising steps of its call unless told otherwise.
        teacher: the model it was distilled from, if any.
        size_mb: of its own files and those it shares with another, 10⁶ bytes.
        made_by: how it was made: command, versions, data.
        manifest: its `fewstep.json`.
    """

    name: str
    what: str
    pipeline: str
    steps: int | None
    teacher: str | None
    size_mb: float
    made_by: dict[str, Any]
    manifest: Manifest


def info(name: str, root: Path = ZOO) -> Info:
    """What a zoo model is and how it was made.

    Raises:
        InputError: the zoo has no such model, or its files are not as they must be.
    """
    folder = _folder(name, root)
    manifest = Manifest.read(folder) or Manifest(name=name)
    files = [file for part in component_folders(folder).values() for file in part.rglob("*") if file.is_file()]
    return Info(
        name=name,
        what=_what(manifest),
        pipeline=str(read_json(folder / INDEX)["_class_name"]),
        steps=manifest.steps or manifest.call.get("num_inference_steps"),
        teacher=manifest.teacher,
        size_mb=round(sum(file.stat().st_size for file in files) / 1e6, 2),
        made_by=dict(manifest.made_by),
        manifest=manifest,
    )


def export(name: str, folder: Path | str, root: Path = ZOO) -> Path:
    """Write a model as a whole, plain diffusers folder: shared parts filled in, and a model card with the exact call.

    Raises:
        InputError: the zoo has no such model, or `folder` exists already and is not empty.
        MachineError: the disk is full; nothing was changed.
    """
    source, folder = _folder(name, root), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already: name a new folder to export {name!r} to.")
    with replacing(folder) as aside:
        copy_pipeline(source, aside)
        whole = Manifest.read(aside) or Manifest(name=name)
        whole.write(aside)
        (aside / "README.md").write_text(_card(whole, str(read_json(source / INDEX)["_class_name"])), encoding="utf-8")
    return folder


def _folder(name: str, root: Path) -> Path:
    if name not in names(root):
        raise InputError(f"The zoo has no {name!r}: it has {', '.join(names(root)) or 'nothing yet'}.")
    return root / name


def _what(manifest: Manifest) -> str:
    if manifest.teacher is None:
        return f"A teacher, trained from nothing on {_medium(manifest).samples} drawn by code."
    guided = ", guidance inside" if manifest.guidance_inside else ""
    return f"A student of {manifest.teacher} for {manifest.steps} step{'s' * (manifest.steps != 1)}{guided}."


# ---------------------------------------------------------------------------------------------------------------------
# The model card


@dataclass(frozen=True)
class _Medium:
    """What a card says of the models that make pictures, or of those that make clips."""

    tag: str
    samples: str
    imports: str
    prompt: str
    made: str  # from the pipeline's output
    saved: str
    shown: str


_PICTURES = _Medium(
    tag="text-to-image",
    samples="pictures",
    imports="from diffusers import DiffusionPipeline",
    prompt="a large red ring left of a small blue square",
    made="image = pipe(...).images[0]",
    saved='image.save("picture.png")',
    shown="one to four simple objects on a muted background, 64×64 pixels",
)
_CLIPS = _Medium(
    tag="text-to-video",
    samples="clips",
    imports="from diffusers import DiffusionPipeline\nfrom diffusers.utils import export_to_video",
    prompt="a fast red ring moving left",
    made="frames = pipe(...).frames[0]",
    saved='export_to_video(frames, "clip.mp4", fps=8)',
    shown="one or two simple objects that move on a still, muted background, 17 frames of 64×64 pixels",
)


def _medium(manifest: Manifest) -> _Medium:
    return _CLIPS if "num_frames" in manifest.call else _PICTURES


def _card(manifest: Manifest, pipeline: str) -> str:
    medium = _medium(manifest)
    arguments = [repr(medium.prompt), *(f"{key}={value!r}" for key, value in manifest.call.items())]
    call = medium.made.replace("...", "\n" + "".join(f"    {argument},\n" for argument in arguments))
    made = "\n".join(_facts(dict(manifest.made_by))) or "- not recorded"
    return f"""---
library_name: diffusers
pipeline_tag: {medium.tag}
license: apache-2.0
---

# {manifest.name}

{_what(manifest)} It is a plain diffusers `{pipeline}`: fewstep is not needed to run it.

```python
import torch
{medium.imports}

pipe = DiffusionPipeline.from_pretrained("path/to/this/folder", dtype=torch.float32)
{call}
{medium.saved}
```

The arguments matter: the defaults of `{pipeline}` are those of a much larger model.

## How it was made

{made}

It draws what it was trained on, and nothing else: {medium.shown}.
"""


def _facts(made_by: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in made_by.items():
        if isinstance(value, dict):
            yield f"{indent}- {key}:"
            yield from _facts(value, indent + "  ")
        else:
            yield f"{indent}- {key}: {value}"
