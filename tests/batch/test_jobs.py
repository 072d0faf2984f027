"""Names told by content, and the folder of outputs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fewstep.batch.identity import BLOCK, BLOCKS, anchored, contents, identity
from fewstep.batch.jobs import Folder, Source, tasks
from fewstep.batch.prompts import Request
from fewstep.errors import InputError
from fewstep.files import write_json
from fewstep.models.load import ZOO
from tests.cli.conftest import made_once, model  # noqa: F401

SOURCE = Source("sha256:1", {"techniques": []})
REQUEST = Request(1, "a red ring", 7, "x", {"steps": 4, "width": 64})


@pytest.mark.parametrize(
    ("source", "request_"),
    [
        (replace(SOURCE, model="sha256:2"), REQUEST),
        (replace(SOURCE, recipe={"techniques": ["compile"]}), REQUEST),
        (SOURCE, replace(REQUEST, prompt="a red rin")),
        (SOURCE, replace(REQUEST, seed=8)),
        (SOURCE, replace(REQUEST, call={"steps": 64, "width": 4})),
        (SOURCE, replace(REQUEST, call={"steps": 4})),
    ],
)
def test_the_name_tells_all_that_an_output_depends_on(source: Source, request_: Request) -> None:
    assert source.name(request_) != SOURCE.name(REQUEST)


def test_the_name_tells_nothing_else() -> None:
    other = replace(REQUEST, line=9, id="y", call={"width": 64, "steps": 4})
    assert SOURCE.name(other) == SOURCE.name(REQUEST)
    assert len(SOURCE.name(REQUEST)) == 24


def test_equal_requests_are_one_task_and_done_ones_none() -> None:
    named = [(REQUEST, "a"), (replace(REQUEST, line=2), "a"), (replace(REQUEST, line=3, seed=8), "b"), (REQUEST, "c")]
    found = tasks(named, {"c"})
    assert [task.name for task in found] == ["a", "b"]
    assert found[0].item == {"prompt": "a red ring", "seed": 7, "call": {"steps": 4, "width": 64}}
    assert found[0].kind == found[1].kind


def test_the_index_says_what_became_of_each_line(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new", ".png")
    assert folder.there(["a"]) == set()
    folder.write("a", b"picture", {"seconds": 1})
    assert folder.there(["a", "b"]) == {"a"}
    assert json.loads((tmp_path / "new" / "a.png.json").read_text()) == {"seconds": 1}
    named = [(REQUEST, "a"), (Request(2, "b", 1), "b"), (Request(4, "c", 1), "c")]
    rows = [json.loads(line) for line in folder.write_index(named, {"b": "bad"}).read_text().splitlines()]
    said = {"line": 1, "id": "x", "prompt": "a red ring", "seed": 7, "steps": 4, "width": 64}
    assert rows == [
        {**said, "state": "made", "file": "a.png"},
        {"line": 2, "prompt": "b", "seed": 1, "state": "failed", "why": "bad"},
        {"line": 4, "prompt": "c", "seed": 1, "state": "missing"},
    ]
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


def test_a_copy_is_the_same_model_and_other_weights_are_another(model: Path, tmp_path: Path) -> None:  # noqa: F811
    before = identity(model)
    assert identity(shutil.copytree(model, tmp_path / "copy")) == before
    (file,) = (model / "transformer").glob("*.safetensors")
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, file)
    assert identity(model) != before


def test_the_call_that_a_manifest_fills_in_is_part_of_the_model(model: Path) -> None:  # noqa: F811
    before = identity(model)
    manifest = json.loads((model / "fewstep.json").read_text())
    write_json(model / "fewstep.json", {**manifest, "call": {**manifest["call"], "num_inference_steps": 3}})
    assert identity(model) != before


def test_a_large_file_is_told_apart_at_its_end(tmp_path: Path) -> None:
    def of(last: bytes) -> object:
        (tmp_path / "large.bin").write_bytes(b"a" * (BLOCK * BLOCKS + 5) + last)
        return contents(str(tmp_path / "large.bin"))

    assert of(b"a") != of(b"b")


def test_models_that_share_files_differ() -> None:
    assert identity("zoo:shapes-1step") != identity("zoo:shapes-4step")
    with pytest.raises(InputError, match="no diffusers pipeline"):
        identity(ZOO)


def test_a_recipe_is_known_by_what_it_names(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(model.parent)
    Path("seen.safetensors").write_bytes(b"")
    recipe = {
        "techniques": [
            "compile",
            {"few_step": {"student": "tiny"}},
            {"cache": {"calibration": "seen.safetensors", "threshold": 0.1}},
        ]
    }
    compiled, student, cache = contents(recipe)["techniques"]
    assert compiled == "compile"
    assert student == {"few_step": {"student": identity(model)}}
    assert cache == recipe["techniques"][2]  # the first call may write that file
    assert anchored(recipe)["techniques"][1] == {"few_step": {"student": str(model)}}
    assert anchored({"student": "zoo:shapes-4step"}) == {"student": "zoo:shapes-4step"}
