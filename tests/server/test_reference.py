"""Videos that start from a picture, with a small pipeline that takes one."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import openai
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image

from fewstep.models.manifest import Manifest
from fewstep.server.config import ModelEntry, ServerConfig
from fewstep.zoo.moving.pipeline import CALL, build_pipeline
from tests.server.running import Running, running

pytestmark = pytest.mark.filterwarnings("ignore:The Sora:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    parts = build_pipeline().components
    # It counts its times by patches of 2×2 latents, as Wan's own models have them.
    patches = {**parts["transformer"].config, "patch_size": (1, 2, 2)}
    parts["transformer"] = WanTransformer3DModel.from_config(patches)
    made = tmp_path_factory.mktemp("pipelines") / "starts"
    WanImageToVideoPipeline(**parts, image_encoder=None, image_processor=None, expand_timesteps=True).save_pretrained(
        made
    )
    call = {**CALL, "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1.0}
    Manifest(name="starts", call=call).write(made)
    return made


def png(size: tuple[int, int] = (50, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def check(server: Running, id: str) -> None:
    client = server.client()
    video = client.videos.poll(id)
    assert video.status == "completed", video.error
    with av.open(io.BytesIO(client.videos.download_content(id).read()), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(frames).shape == (5, 32, 32, 3)


def test_from_a_file_and_from_a_data_url(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This pipeline mends texts by a package that diffusers does not ask for, and that nothing else here needs.
    mending = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan_i2v.ftfy", mending, raising=False)
    entry = ModelEntry(name="starts", model=str(folder))
    with running(ServerConfig(models=(entry,), folder=tmp_path)) as server:
        client = server.client()
        check(server, client.videos.create(prompt="a red ring", input_reference=("../../x.png", png())).id)
        url = "data:image/png;base64," + base64.b64encode(png()).decode()
        with server.http() as http:
            made = http.post("/v1/videos", json={"prompt": "a", "input_reference": {"image_url": url}})
            check(server, made.json()["id"])
            for wrong in ("data:image/png;base64,!", "data:text/plain,a", "file:///etc/passwd", "http://localhost/a"):
                refused = http.post("/v1/videos", json={"prompt": "a", "input_reference": {"image_url": wrong}})
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input_reference")
        with pytest.raises(openai.BadRequestError, match="must start from a picture"):
            client.videos.create(prompt="a red ring")
        with pytest.raises(openai.BadRequestError, match="must be a picture"):
            client.videos.create(prompt="a red ring", input_reference=b"GIF89a")
        with pytest.raises(openai.BadRequestError, match="pixels"):
            client.videos.create(prompt="a red ring", input_reference=png((10_000, 6_000)))
