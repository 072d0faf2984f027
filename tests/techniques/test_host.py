"""What a call is spared, and when it must not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import nn

from fewstep.accelerate import accelerate
from fewstep.errors import RecipeError
from fewstep.files import read_json
from fewstep.techniques.host import Host, device_of, hooked, inverts
from tests.techniques.tiny import ABLE, pipeline, run


def walks(pipe: Any) -> list[int]:
    """How often a call walks through the modules of the transformer and of the VAE."""
    counts = [_counted(pipe.transformer), _counted(pipe.vae)]
    run(pipe, steps=1)
    return [len(count) for count in counts]


def _counted(module: nn.Module) -> list[None]:
    """One entry for each walk."""
    seen: list[None] = []
    plain = module.named_modules  # what all of torch's walks are made of

    def named_modules(*args: Any, **kwargs: Any) -> Any:
        seen.append(None)
        return plain(*args, **kwargs)

    module.__dict__["named_modules"] = named_modules
    return seen


def test_walks_are_spared() -> None:
    """What is left: the one at the start, the first parameter, and a context of diffusers in the transformer."""
    plain = walks(pipeline())
    pipe = pipeline()
    fast = accelerate(pipe, [Host()], ABLE)
    assert walks(pipe) == [3, 2]
    assert all(few < many for few, many in zip([3, 2], plain, strict=True))
    answered = fast.engaged[0].facts["answered"]
    assert answered["devices"]
    assert answered["prompts"]
    assert fast.engaged[0].warnings() == []


def test_the_class_keeps_its_name_and_comes_back(tmp_path: Path) -> None:
    pipe = pipeline()
    plain = type(pipe)
    fast = accelerate(pipe, [Host()], ABLE)
    assert isinstance(pipe, plain)
    assert type(pipe) is not plain
    pipe.save_pretrained(tmp_path)
    assert read_json(tmp_path / "model_index.json")["_class_name"] == plain.__name__
    fast.remove()
    assert type(pipe) is plain


def test_words_of_many_vectors_are_still_replaced() -> None:
    pipe = pipeline()
    assert not inverts(pipe.tokenizer)
    pipe.tokenizer.add_tokens(["<cat>", "<cat>_1"])
    assert inverts(pipe.tokenizer)
    accelerate(pipe, [Host()], ABLE)
    assert pipe.maybe_convert_prompt("a <cat>", pipe.tokenizer) == "a <cat> <cat>_1"


def test_hooked_models_are_refused() -> None:
    pipe = pipeline()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(RecipeError, match="Host has nothing to spare"):
        accelerate(pipe, [Host()], ABLE)


def test_hooks_that_come_later_are_seen_and_told() -> None:
    """A cache of diffusers keeps its state in hooks, which the pipeline resets at the end of a call."""
    pipe = pipeline()
    fast = accelerate(pipe, [Host()], ABLE)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with pytest.warns(RuntimeWarning, match="Host spared nothing"):
        first = run(fast, steps=4)
    with pytest.warns(RuntimeWarning, match="Host spared nothing"):
        assert torch.equal(run(fast, steps=4), first)
    pipe.transformer.disable_cache()
    assert not hooked(pipe.transformer)


def test_a_pipeline_on_two_devices_computes_on_the_one_that_is_no_cpu() -> None:
    here, there, nothing = nn.Linear(1, 1), nn.Linear(1, 1, device="meta"), nn.Identity()
    assert device_of([nothing]) is None
    assert device_of([nothing, there, here]) == torch.device("meta")  # diffusers: neither is an accelerator, so first
    assert device_of([here, there]) == torch.device("cpu")
