"""Names as data: what the original code of a family calls a part, and what diffusers calls it.

One table serves reading and writing. Facts from diffusers' own single-file conversion (0.42) of each family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Rule:
    """One part under two names.

    Attributes:
        theirs: path of a module or a tensor in the original code; `{}` stands for a block's number.
        ours: its path in diffusers; of several, the rows stand one below the other in `theirs`.
        swap: the upper and the lower half of the rows change places (shift and scale, which diffusers has the other
            way round).
    """

    theirs: str
    ours: tuple[str, ...]
    swap: bool = False


def _same_number(theirs: str, ours: str, pairs: dict[str, str | tuple[str, ...]]) -> tuple[Rule, ...]:
    """Rules for the parts of one kind of block."""
    return tuple(
        Rule(f"{theirs}.{{}}.{a}", tuple(f"{ours}.{{}}.{name}" for name in ((b,) if isinstance(b, str) else b)))
        for a, b in pairs.items()
    )


def _plain(pairs: dict[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(a, (b,)) for a, b in pairs.items())


_ATTENTION: dict[str, str | tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
}
_ENDS = (
    Rule("final_layer.linear", ("proj_out",)),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), swap=True),
    Rule("img_in", ("x_embedder",)),
    Rule("txt_in", ("context_embedder",)),
)


def _embedders(place: str, names: dict[str, str]) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{theirs}.{side}_layer", (f"{place}.{ours}.linear_{number}",))
        for theirs, ours in names.items()
        for side, number in (("in", 1), ("out", 2))
    )


FLUX = (
    *_ENDS,
    *_embedders(
        "time_text_embed",
        {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"},
    ),
    *_same_number(
        "double_blocks",
        "transformer_blocks",
        {
            **_ATTENTION,
            "img_mod.lin": "norm1.linear",
            "txt_mod.lin": "norm1_context.linear",
            "img_mlp.0": "ff.net.0.proj",
            "img_mlp.2": "ff.net.2",
            "txt_mlp.0": "ff_context.net.0.proj",
            "txt_mlp.2": "ff_context.net.2",
        },
    ),
    *_same_number(
        "single_blocks",
        "single_transformer_blocks",
        {
            "modulation.lin": "norm.linear",
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": "proj_out",
            "norm.query_norm.scale": "attn.norm_q.weight",
            "norm.key_norm.scale": "attn.norm_k.weight",
        },
    ),
)
FLUX2 = (
    *_ENDS,
    *_embedders("time_guidance_embed", {"time_in": "timestep_embedder", "guidance_in": "guidance_embedder"}),
    *_plain(
        {
            f"{name}.lin": f"{name}.linear"
            for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
        }
    ),
    *_same_number(
        "double_blocks",
        "transformer_blocks",
        {
            **_ATTENTION,
            "img_mlp.0": "ff.linear_in",
            "img_mlp.2": "ff.linear_out",
            "txt_mlp.0": "ff_context.linear_in",
            "txt_mlp.2": "ff_context.linear_out",
        },
    ),
    *_same_number(
        "single_blocks",
        "single_transformer_blocks",
        {
            "linear1": "attn.to_qkv_mlp_proj",
            "linear2": "attn.to_out",
            "norm.query_norm.scale": "attn.norm_q.weight",
            "norm.key_norm.scale": "attn.norm_k.weight",
        },
    ),
)
_EACH = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_OF_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
WAN = (
    *_plain(
        {
            "patch_embedding": "patch_embedding",
            "time_embedding.0": "condition_embedder.time_embedder.linear_1",
            "time_embedding.2": "condition_embedder.time_embedder.linear_2",
            "text_embedding.0": "condition_embedder.text_embedder.linear_1",
            "text_embedding.2": "condition_embedder.text_embedder.linear_2",
            "time_projection.1": "condition_embedder.time_proj",
            "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
            "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
            "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
            "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
            "head.head": "proj_out",
            "head.modulation": "scale_shift_table",
        }
    ),
    *_same_number(
        "blocks",
        "blocks",
        {
            **{f"self_attn.{a}": f"attn1.{b}" for a, b in _EACH.items()},
            **{f"cross_attn.{a}": f"attn2.{b}" for a, b in {**_EACH, **_OF_IMAGE}.items()},
            "ffn.0": "ffn.net.0.proj",
            "ffn.2": "ffn.net.2",
            "norm3": "norm2",
            "modulation": "scale_shift_table",
        },
    ),
)
ORIGINAL_NAMES = {
    "FluxTransformer2DModel": FLUX,
    "Flux2Transformer2DModel": FLUX2,
    "WanTransformer3DModel": WAN,
}
"""Class name -> its table. A class without one has diffusers' names in a single file too."""


@dataclass(frozen=True)
class Place:
    """Where a name belongs: their path, the rule's own paths with the block's number in them, and what follows."""

    theirs: str
    ours: tuple[str, ...]
    leaf: str
    swap: bool = False


def from_theirs(name: str, rules: tuple[Rule, ...]) -> Place | None:
    """The place of an original name (of a tensor or a module), None where the table has none."""
    for rule in rules:
        if found := _pattern(rule.theirs).fullmatch(name):
            return _place(rule, found)
    return None


def from_ours(name: str, rules: tuple[Rule, ...]) -> Place | None:
    """The place of a diffusers name."""
    for rule in rules:
        for path in rule.ours:
            if found := _pattern(path).fullmatch(name):
                return _place(rule, found)
    return None


def used(names: Iterable[str], rules: tuple[Rule, ...]) -> bool:
    """Whether these are mostly original names."""
    names = list(names)
    return sum(from_theirs(name, rules) is not None for name in names) * 2 > len(names)


def _place(rule: Rule, found: re.Match[str]) -> Place:
    number = found.groupdict().get("number") or ""
    theirs, *ours = (path.replace("{}", number) for path in (rule.theirs, *rule.ours))
    return Place(theirs, tuple(ours), found["leaf"], rule.swap)


@cache
def _pattern(path: str) -> re.Pattern[str]:
    head, block, tail = path.partition("{}")
    number = r"(?P<number>\d+)" if block else ""
    return re.compile(re.escape(head) + number + re.escape(tail) + r"(?P<leaf>|\.(weight|bias))")
