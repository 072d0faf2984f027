"""The network of a model, read from its config files: of a known model, a folder, `zoo:NAME` or a hub id. No weights.

A config is what diffusers and transformers write as `config.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.errors import InputError
from fewstep.files import read_entries, read_json
from fewstep.models.load import INDEX, component_folders, fetched, resolve
from fewstep.models.manifest import Manifest
from fewstep.plan.blocks import BLOCKS, Config, hidden_of, width_of
from fewstep.plan.decoder import decoder_of, frames_of, latent_of, pixels_of
from fewstep.plan.work import Network

TABLE = Path(__file__).with_name("models.yaml")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Usual:
    """What no config says of a pipeline: diffusers' defaults of its call, and how it cuts latents into tokens.

    Attributes:
        call: height, width, frames, steps, branches.
        text_tokens: of a prompt, padded as the pipeline does it; a long prompt where it does not pad.
        pack: latent rows (and columns) of one token, where the denoiser's `patch_size` does not say it.
    """

    call: tuple[int, int, int, int, int]
    text_tokens: int
    pack: int | None = None


CALL = ("height", "width", "frames", "steps", "branches")
USUAL: Mapping[str, Usual] = MappingProxyType(
    {
        "FluxTransformer2DModel": Usual((1024, 1024, 1, 28, 1), 512, pack=2),
        "Flux2Transformer2DModel": Usual((1024, 1024, 1, 50, 1), 512, pack=2),
        "ChromaTransformer2DModel": Usual((1024, 1024, 1, 35, 2), 512, pack=2),
        "QwenImageTransformer2DModel": Usual((1024, 1024, 1, 50, 2), 128),
        "SD3Transformer2DModel": Usual((1024, 1024, 1, 28, 2), 333),
        "PixArtTransformer2DModel": Usual((1024, 1024, 1, 20, 2), 300),
        "ZImageTransformer2DModel": Usual((1024, 1024, 1, 50, 2), 128, pack=2),
        "WanTransformer3DModel": Usual((480, 832, 81, 50, 2), 512),
        "LTXVideoTransformer3DModel": Usual((512, 704, 161, 50, 2), 128),
        "HunyuanVideoTransformer3DModel": Usual((720, 1280, 129, 50, 1), 256),
        "CogVideoXTransformer3DModel": Usual((480, 720, 49, 50, 2), 226),
        "MochiTransformer3DModel": Usual((480, 848, 19, 64, 2), 256),
    }
)


def network_of(source: str | Path) -> Network:
    """The network of a known model (`flux.1-dev`, or its hub id), a pipeline folder, `zoo:NAME`, or a hub id.

    Of a hub id that is not known, only config files are fetched.

    Raises:
        InputError: no such model, or one whose denoiser or configs this can't count.
    """
    name = str(source)
    if entry := known().get(name.lower()):
        return _network(entry["name"], entry["transformer"], entry["vae"], sum(entry["encoders"].values()), entry)
    try:
        place = resolve(source)
    except InputError as error:
        names = ", ".join(sorted({entry["name"] for entry in known().values()}))
        raise InputError(f"{error} The models known by name are {names}.") from None
    read = _in_folder(place) if isinstance(place, Path) else _on_hub(place)
    index = read("", INDEX)
    if index is None:
        raise InputError(f"{name} has no {INDEX} that can be read: name a diffusers pipeline.")
    transformer, vae = (read(part, "config.json") if _there(index, part) else None for part in ("transformer", "vae"))
    if transformer is None or vae is None:
        raise InputError(f"{name} lacks the config of a transformer or a VAE: only pipelines with both can be planned.")
    encoders = [read(part, "config.json") for part in ENCODERS if _there(index, part)]
    extra = {"source": name, "experts": 1 + _there(index, "transformer_2")}
    try:
        weights = sum(encoder_weights(config) for config in encoders if config)
        network = _network(name, transformer, vae, weights, extra)
    except KeyError as error:
        raise InputError(f"A config of {name} lacks {error.args[0]!r}, without which it can't be planned.") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"A config of {name} is not as diffusers or transformers write it: {error}.") from None
    return _as_said(network, Manifest.read(place) if isinstance(place, Path) else None)


@cache
def known() -> dict[str, dict[str, Any]]:
    """The table of known models, by name and by hub id in small letters."""
    entries = read_entries(TABLE, "models")
    return {key.lower(): entry for entry in entries for key in (entry["name"], *entry["hub"])}


def encoder_weights(config: Config) -> int:
    """Weights of a text encoder, by T5's names, or by those of CLIP and language models (grouped keys, gated MLPs)."""
    config = config.get("text_config") or config
    if "d_model" in config:
        w, inner = config["d_model"], config["num_heads"] * config["d_kv"]
        gates = 2 + str(config.get("feed_forward_proj", "")).startswith("gated")
        return int(config["num_layers"] * (4 * w * inner + gates * w * config["d_ff"]) + config["vocab_size"] * w)
    w, heads = config["hidden_size"], config["num_attention_heads"]
    head, keys = config.get("head_dim") or w // heads, config.get("num_key_value_heads") or heads
    gates = 3 if config.get("hidden_act") == "silu" else 2
    layer = 2 * w * head * (heads + keys) + gates * w * config["intermediate_size"]
    return int(config["num_hidden_layers"] * layer + config["vocab_size"] * w)


def _network(name: str, transformer: Config, vae: Config, encoders: float, extra: Mapping[str, Any]) -> Network:
    kind = str(transformer.get("_class_name"))
    if kind not in BLOCKS:
        raise InputError(f"{name} has a {kind}, which can't be planned: it must be one of {', '.join(sorted(BLOCKS))}.")
    usual = USUAL[kind]
    time, rows = _patch(transformer, usual)
    return Network(
        name=name,
        width=width_of(transformer),
        heads=int(transformer.get("n_heads") or transformer["num_attention_heads"]),
        hidden=hidden_of(transformer),
        blocks=BLOCKS[kind](transformer),
        span=(frames_of(vae) * time, pixels_of(vae) * rows, pixels_of(vae) * rows),
        values=latent_of(vae) * time * rows * rows,
        text_tokens=int(extra.get("text_tokens", usual.text_tokens)),
        encoders=round(encoders),
        decoder=decoder_of(vae),
        call={**dict(zip(CALL, usual.call, strict=True)), **extra.get("call", {})},
        experts=int(extra.get("experts", 1)),
        source=str(extra["source"]),
    )


def _patch(transformer: Config, usual: Usual) -> tuple[int, int]:
    """Latent frames, and latent rows (and columns), of one token."""
    patch = transformer.get("patch_size", 1)
    time, rows = (patch[0], patch[-1]) if isinstance(patch, list) else (transformer.get("patch_size_t") or 1, patch)
    return time, usual.pack or rows


def _as_said(network: Network, manifest: Manifest | None) -> Network:
    """With the size, steps and guidance that a pipeline's manifest says it is made for."""
    if manifest is None:
        return network
    said = manifest.call
    names = {"height": "height", "width": "width", "num_frames": "frames", "num_inference_steps": "steps"}
    call = {**network.call, **{ours: said[theirs] for theirs, ours in names.items() if theirs in said}}
    scale = said.get("true_cfg_scale", said.get("guidance_scale", 1 + (call["branches"] > 1)))
    call["branches"] = 2 if scale > 1 and not manifest.guidance_inside else 1
    return replace(network, call=call, text_tokens=said.get("max_sequence_length", network.text_tokens))


def _there(index: Mapping[str, Any], part: str) -> bool:
    entry = index.get(part)
    return isinstance(entry, list) and bool(entry) and entry[0] is not None


def _in_folder(place: Path) -> Callable[[str, str], Any]:
    parts = {"": place, **component_folders(place)}

    def read(part: str, file: str) -> Any:
        path = parts[part] / file
        return read_json(path) if path.exists() else None

    return read


def _on_hub(name: str) -> Callable[[str, str], Any]:
    def read(part: str, file: str) -> Any:
        path = fetched(name, f"{part}/{file}".lstrip("/"), {})
        return read_json(path) if path else None

    return read
