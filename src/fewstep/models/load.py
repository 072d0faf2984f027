"""Loading a pipeline from the zoo, a folder or the hub, with its manifest's defaults filled into the call."""

from __future__ import annotations

import functools
import inspect
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import CheckpointError, InputError, bad_value
from fewstep.files import read_json
from fewstep.models.manifest import FILE, Manifest
from fewstep.models.renoising import seeded_steps

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ZOO = Path(__file__).parents[1] / "zoo" / "weights"
INDEX = "model_index.json"
SMALL_DECODER = "small_decoder"  # folder of one beside the components: see `distill.decoder`
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")


def load(source: str | Path, **kwargs: Any) -> DiffusionPipeline:
    """A diffusers pipeline from `zoo:NAME`, a folder, or a hub id.

    Weights come up in float32 unless `torch_dtype` (or `dtype`) is given, whatever they are stored in: left alone,
    diffusers gives its own models in float32 but text encoders as stored. Where the folder has a manifest, its call
    defaults are filled in, so `pipe("a red ring")` is enough; what the caller gives goes first. Other keyword arguments
    go to `DiffusionPipeline.from_pretrained`.

    Raises:
        InputError: no such zoo name or folder, a folder that is no pipeline, or a hub id that can't be had.
        CheckpointError: a weight file that is truncated or no safetensors.
    """
    place = resolve(source)  # before the slow imports: a wrong name is told at once
    import torch
    from diffusers import DiffusionPipeline

    if not {"dtype", "torch_dtype"} & set(kwargs):
        kwargs["dtype"] = torch.float32
    if isinstance(place, str):
        pipe = _from_pretrained(DiffusionPipeline, place, kwargs)
        said = fetched(place, FILE, kwargs)
        manifest = Manifest.read(said.parent) if said else None
        return _as_said(pipe, manifest) if manifest else pipe
    manifest = Manifest.read(place)
    for folder in component_folders(place).values():
        _check_weights(folder)
    with _assembled(place, manifest) as whole:
        pipe = _from_pretrained(DiffusionPipeline, str(whole), kwargs)
    pipe.register_to_config(_name_or_path=str(place))
    return _as_said(pipe, manifest) if manifest else pipe


def _as_said(pipe: DiffusionPipeline, manifest: Manifest) -> DiffusionPipeline:
    """The pipeline as its manifest says it is: with its call's defaults, and seeing only the past."""
    if manifest.causal is not None:
        from fewstep.models.causal import make_causal
        from fewstep.models.model import Model
        from fewstep.models.window import Chunks

        for denoiser in Model(pipe).denoisers.values():
            make_causal(denoiser, Chunks.of(manifest.causal, FILE))
    return with_defaults(pipe, manifest)


def resolve(source: str | Path) -> Path | str:
    """The folder of `zoo:NAME` or of a path, or the hub id as it is.

    Raises:
        InputError: an unknown zoo name (the message lists the known), or neither a folder nor of the form of a hub id.
    """
    text = str(source)
    if text.startswith("zoo:"):
        return _zoo_folder(text.removeprefix("zoo:"))
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, str) and HUB_ID.fullmatch(text) and not text.startswith("."):
        return text
    raise InputError(f"There is no folder {text}: name a pipeline folder, a hub id like 'owner/name', or 'zoo:NAME'.")


def fetched(name: str, file: str, options: Mapping[str, Any]) -> Path | None:
    """A file of a hub repository; None where it has none or can't be reached (then loading the pipeline says why).

    Of `options` those that say from where and how it is fetched (`HUB_OPTIONS`) are taken.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, **{key: options[key] for key in HUB_OPTIONS if key in options}))
    except (OSError, ValueError):  # what the hub's own errors derive from
        return None


def _zoo_folder(name: str) -> Path:
    names = sorted(folder.name for folder in ZOO.glob("*") if (folder / INDEX).exists())
    if name not in names:
        raise InputError(f"The zoo has no {name!r}: it has {', '.join(names) or 'nothing yet'}.")
    return ZOO / name


def with_defaults(pipe: DiffusionPipeline, manifest: Manifest) -> DiffusionPipeline:
    """The same pipeline object, of a subclass of the same name whose call fills in `manifest.call`.

    Pipelines keep such defaults in the signature of their call, not in a config, so there is no other place for them.
    `isinstance` holds, and `save_pretrained` writes the plain class name.
    """
    plain: Any = type(pipe)
    plain = plain.__mro__[1] if "fewstep_manifest" in vars(plain) else plain
    call = _defaulting(plain.__call__, dict(manifest.call))
    body = {"__call__": call, "__module__": plain.__module__, "__doc__": plain.__doc__, "fewstep_manifest": manifest}
    pipe.__class__ = type(plain.__name__, (plain,), body)
    return pipe


def _defaulting(call: Callable[..., Any], defaults: dict[str, Any]) -> Callable[..., Any]:
    signature = inspect.signature(call)

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = set(signature.bind_partial(self, *args, **kwargs).arguments) | set(kwargs)
        filled = {
            name: value
            for name, value in defaults.items()
            # a prompt given as embeddings takes the place of the text
            if name not in given and f"{name}_embeds" not in given
        }
        if "negative_prompt" in filled:
            prompt = signature.bind_partial(self, *args, **kwargs).arguments.get("prompt")
            filled["negative_prompt"] = for_each(filled["negative_prompt"], prompt)
        with seeded_steps(getattr(self, "scheduler", None), kwargs.get("generator")):
            return call(self, *args, **kwargs, **filled)

    return __call__


def for_each(negative: Any, prompts: Any) -> Any:
    """A single negative prompt once for each of a list of prompts: Flux's pipeline does not spread it over a batch."""
    return [negative] * len(prompts) if isinstance(negative, str) and isinstance(prompts, list) else negative


def _from_pretrained(pipeline_class: Any, place: str, kwargs: dict[str, Any]) -> DiffusionPipeline:
    try:
        pipe: DiffusionPipeline = pipeline_class.from_pretrained(place, **kwargs)
    except (OSError, ValueError, AttributeError) as error:  # the last: a class that diffusers does not have
        first = str(error).strip().splitlines()[0]
        raise InputError(f"Could not load a pipeline from {place}: {first}") from error
    return pipe


def component_folders(folder: Path) -> dict[str, Path]:
    """Component of the pipeline in `folder` -> the folder that holds it, here or shared with another pipeline.

    Raises:
        InputError: no pipeline, or a component without a folder.
    """
    if not (folder / INDEX).exists():
        raise InputError(f"The folder {folder} is no diffusers pipeline: it has no {INDEX}.")
    index, manifest = read_json(folder / INDEX), Manifest.read(folder)
    shares = manifest.shares if manifest else {}
    parts = {
        name: (folder / shares.get(name, name)).resolve()
        for name, entry in index.items()
        if isinstance(entry, list) and entry and entry[0] is not None
    }
    for name, part in parts.items():
        if not part.is_dir():
            raise InputError(f"The pipeline in {folder} lacks its component {name!r}: there is no folder {part}.")
    return parts


def local(source: str | Path) -> Path:
    """The folder of `zoo:NAME` or of a path; of a hub id what is downloaded.

    Raises: as `resolve`.
    """
    place = resolve(source)
    if isinstance(place, Path):
        return place
    from diffusers import DiffusionPipeline

    return Path(DiffusionPipeline.download(place))


def component_folder(source: str | Path, name: str) -> Path:
    """The folder of a pipeline's component, or `source` itself where it is no pipeline but one model's folder.

    Raises:
        InputError: nothing is at `source`, or the pipeline has no such component.
    """
    place = local(source)
    if not (place / INDEX).exists():
        return place
    parts = component_folders(place)
    if name not in parts:
        raise InputError(bad_value("component", str(source), f"one of {', '.join(parts)}", name))
    return parts[name]


def copy_pipeline(source: Path, target: Path, but: Collection[str] = ()) -> None:
    """Copy a pipeline's folder with its shared components filled in, all components `but` some, to the new `target`.

    Raises:
        InputError: no pipeline, or a component without a folder.
    """
    parts = component_folders(source)
    target.mkdir()
    for name in parts.keys() - set(but):
        shutil.copytree(parts[name], target / name)
    if (source / SMALL_DECODER).is_dir():
        shutil.copytree(source / SMALL_DECODER, target / SMALL_DECODER)
    shutil.copy(source / INDEX, target / INDEX)
    if manifest := Manifest.read(source):
        replace(manifest, shares={}).write(target)


def _check_weights(folder: Path) -> None:
    """Open every safetensors file: its header says how long the file must be."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise CheckpointError(f"The weight file {path} is damaged or cut short: {error}.") from error


@contextmanager
def _assembled(folder: Path, manifest: Manifest | None) -> Iterator[Path]:
    """A folder in which shared components stand beside the pipeline's own, by links: nothing is copied."""
    if manifest is None or not manifest.shares:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fewstep-") as aside:
        for entry in folder.iterdir():
            (Path(aside) / entry.name).symlink_to(entry.resolve())
        for name, shared in manifest.shares.items():
            (Path(aside) / name).symlink_to((folder / shared).resolve())
        yield Path(aside)
