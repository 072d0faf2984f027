"""The official client against a real server: what it sends is understood, what it gets is what it expects."""

from __future__ import annotations

import base64
import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from fewstep.server.config import Limits, ServerConfig
from tests.server.running import MOVING, SHAPES, Running, running, until

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:openai", "ignore:The Sora:DeprecationWarning")
RING = "a red ring"
GREY = (90, 90, 90, 255)
MOVES = "a red ring moving left"


def png(colour: tuple[int, ...], size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(response: Any) -> list[np.ndarray[Any, Any]]:
    opened = [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in response.data]
    return [np.asarray(one).astype(int) for one in opened]


def ours(**extras: Any) -> dict[str, Any]:
    return {"fewstep": extras}


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["shapes", "moving"]
    moving = client.models.retrieve("moving")
    assert moving.object == "model"
    told = {"makes": "video", "size": "64x64", "multiple": 16, "frames": 17, "fps": 16, "recipes": ["default"]}
    assert moving.model_extra == {"fewstep": told}
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")


def test_pictures_are_made_of_seeds(client: openai.OpenAI) -> None:
    two = client.images.generate(model="shapes", prompt=RING, n=2, size="64x64", extra_body=ours(seed=7))
    assert (two.size, two.output_format, two.background) == ("64x64", "png", "opaque")
    first, second = pictures(two)
    assert first.shape == (64, 64, 3)
    assert np.abs(first - second).max() > 50
    [again] = pictures(client.images.generate(prompt=RING, size="auto", extra_body=ours(seed=8)))
    assert np.abs(again - second).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp"])
def test_a_url_gives_the_picture(client: openai.OpenAI, suffix: Any) -> None:
    made = client.images.generate(prompt=RING, response_format="url", output_format=suffix, size="64x64")
    assert made.data
    url = made.data[0].url
    assert url
    fetched = httpx.get(url)
    assert fetched.headers["content-type"] == f"image/{suffix}"
    assert Image.open(io.BytesIO(fetched.content)).format == suffix.upper()


def test_edits_start_from_the_picture(client: openai.OpenAI) -> None:
    little = ours(steps=8, strength=0.2, seed=1)
    [edited] = pictures(client.images.edit(image=png((255, 0, 0, 255)), prompt=RING, extra_body=little))
    [other] = pictures(client.images.edit(image=png((0, 0, 255, 255)), prompt=RING, extra_body=little))
    assert edited[..., 0].mean() > other[..., 0].mean() + 50


def test_a_mask_is_transparent_where_to_paint(client: openai.OpenAI) -> None:
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    response = client.images.generate(prompt=RING, extra_body=ours(seed=1))
    assert response.data
    source = base64.b64decode(response.data[0].b64_json or "")
    [before] = pictures(response)
    anew, square = ours(steps=1, strength=1.0, seed=2), "a large blue square"
    [after] = pictures(client.images.edit(image=source, mask=buffer.getvalue(), prompt=square, extra_body=anew))
    changed = np.abs(after - before)
    assert changed[:, :28].mean() < changed[:, 36:].mean() / 4


def test_an_edit_keeps_the_shape_of_its_picture(client: openai.OpenAI) -> None:
    made = client.images.edit(image=png((9, 9, 9, 255), (400, 100)), prompt=RING)
    assert made.size == "128x32"


def test_a_video_from_asking_to_deleting(client: openai.OpenAI) -> None:
    asked = client.videos.create(prompt=MOVES, model="moving", size="64x64", extra_body=ours(seed=3, steps=1))
    assert (asked.object, asked.status, asked.progress, asked.error) == ("video", "queued", 0, None)
    assert (asked.size, asked.seconds, asked.prompt) == ("64x64", "1.06", MOVES)
    video = client.videos.poll(asked.id)
    assert (video.status, video.progress) == ("completed", 100)
    assert video.completed_at
    assert video.expires_at
    assert video.created_at <= video.completed_at < video.expires_at
    content = client.videos.download_content(video.id)
    assert content.response.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(content.read())) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 16)
        assert [(frame.width, frame.height) for frame in container.decode(stream)] == [(64, 64)] * 17
    still = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").read()))
    assert (still.format, still.size) == ("WEBP", (64, 64))
    gone = client.videos.delete(video.id)
    assert (gone.id, gone.deleted, gone.object) == (video.id, True, "video.deleted")
    for call in (client.videos.retrieve, client.videos.delete, client.videos.download_content):
        with pytest.raises(openai.NotFoundError):
            call(video.id)


def test_the_video_object_has_openai_s_fields_and_no_other(server: Running) -> None:
    with server.http() as http:
        body = http.post("/v1/videos", json={"prompt": MOVES, "seconds": 0.3, "model": "moving"}).json()
        fields = set(openai.types.Video.model_fields)
        assert set(body) == fields
        assert body["seconds"] == "0.3"
        http.delete(f"/v1/videos/{body['id']}")


def test_videos_are_listed_in_pages(client: openai.OpenAI, server: Running) -> None:
    made = [client.videos.create(prompt=MOVES, seconds="0.3", extra_body=ours(steps=1)).id for _ in range(5)]  # type: ignore[arg-type]
    assert [video.id for video in client.videos.list(limit=2)][:5] == made[::-1]
    page = client.videos.list(order="asc", after=made[1], limit=2)
    assert ([video.id for video in page.data], page.has_more) == (made[2:4], True)
    with server.http() as http:
        raw = http.get("/v1/videos", params={"after": made[0], "limit": 3}).json()
        assert raw == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    for id in made:
        client.videos.delete(id)
    with pytest.raises(openai.NotFoundError):
        client.videos.list(after=made[0])


def test_a_running_video_is_deleted_between_two_steps(client: openai.OpenAI, server: Running) -> None:
    long = client.videos.create(prompt=MOVES, extra_body=ours(steps=1000))
    while client.videos.retrieve(long.id).progress == 0:
        pass
    assert client.videos.retrieve(long.id).status == "in_progress"
    client.videos.delete(long.id)
    client.images.generate(prompt=RING)  # would wait for a minute
    assert server.service.jobs.count("queued", "in_progress") == 0


BAD: dict[str, tuple[Callable[[openai.OpenAI], Any], str | None, str]] = {
    "n": (lambda c: c.images.generate(prompt=RING, n=11), "n", "invalid_value"),
    "flag": (lambda c: c.images.generate(prompt=RING, n=True), "n", "invalid_value"),
    "empty": (lambda c: c.images.generate(prompt=" "), "prompt", "invalid_value"),
    "long": (lambda c: c.images.generate(prompt="a " * 20_000), "prompt", "invalid_value"),
    "size": (lambda c: c.images.generate(prompt=RING, size="72x64"), "size", "invalid_size"),
    "huge": (lambda c: c.images.generate(prompt=RING, size="16384x16384"), "size", "invalid_size"),
    "form": (lambda c: c.images.generate(prompt=RING, size="large"), "size", "invalid_value"),
    "quality": (lambda c: c.images.generate(prompt=RING, quality="high"), "quality", "invalid_value"),
    "background": (lambda c: c.images.generate(prompt=RING, background="transparent"), "background", "invalid_value"),
    "style": (lambda c: c.images.generate(prompt=RING, style="vivid"), "style", "invalid_value"),
    "unknown": (lambda c: c.images.generate(prompt=RING, extra_body={"lora": 1}), "lora", "unknown_parameter"),
    "steps": (lambda c: c.images.generate(prompt=RING, extra_body=ours(steps=-1)), "fewstep.steps", "invalid_value"),
    "extra": (lambda c: c.images.generate(prompt=RING, extra_body=ours(stepz=1)), "fewstep.stepz", "unknown_parameter"),
    "recipe": (
        lambda c: c.images.generate(prompt=RING, extra_body=ours(recipe="../x")),
        "fewstep.recipe",
        "invalid_value",
    ),
    "guided": (
        lambda c: c.images.generate(prompt=RING, extra_body=ours(guidance=3)),
        "fewstep.guidance",
        "invalid_value",
    ),
    "strength": (
        lambda c: c.images.generate(prompt=RING, extra_body=ours(strength=1)),
        "fewstep.strength",
        "invalid_value",
    ),
    "kind": (lambda c: c.images.generate(prompt=RING, model="moving"), "model", "wrong_kind"),
    "other kind": (lambda c: c.videos.create(prompt=RING, model="shapes"), "model", "wrong_kind"),
    "no picture": (lambda c: c.images.edit(image=b"GIF89a", prompt=RING), "image", "invalid_value"),
    "mask": (
        lambda c: c.images.edit(image=png(GREY), mask=png(GREY, (32, 32)), prompt=RING),
        "mask",
        "invalid_value",
    ),
    "opaque mask": (
        lambda c: c.images.edit(image=png(GREY), mask=png((0, 0, 0, 255)), prompt=RING),
        "mask",
        "invalid_value",
    ),
    "huge edit": (
        lambda c: c.images.edit(image=png(GREY), prompt=RING, size="99984x99984"),  # type: ignore[call-overload]
        "size",
        "invalid_size",
    ),
    "two": (lambda c: c.images.edit(image=[png(GREY), png(GREY)], prompt=RING), "image", "invalid_value"),
    "seconds": (lambda c: c.videos.create(prompt=RING, seconds="-4"), "seconds", "invalid_value"),  # type: ignore[arg-type]
    "endless": (lambda c: c.videos.create(prompt=RING, seconds="21"), "seconds", "invalid_value"),  # type: ignore[arg-type]
    "reference": (
        lambda c: c.videos.create(prompt=RING, input_reference=png(GREY)),
        "input_reference",
        "unsupported_by_model",
    ),
    "limit": (lambda c: c.videos.list(limit=0), "limit", "invalid_value"),
    "order": (lambda c: c.videos.list(order="up"), "order", "invalid_value"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_openai_s_bad_requests(client: openai.OpenAI, name: str) -> None:
    call, param, code = BAD[name]
    with pytest.raises(openai.BadRequestError) as caught:
        call(client)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")


def test_what_is_not_there_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt=RING, model="dall-e-3")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve("video_1")


def test_what_a_video_can_t_do_yet_or_ever(client: openai.OpenAI) -> None:
    video = client.videos.create(prompt=MOVES, extra_body=ours(steps=1000))
    with pytest.raises(openai.NotFoundError, match="has no content"):
        client.videos.download_content(video.id)
    with pytest.raises(openai.BadRequestError, match="can't remix"):
        client.videos.remix(video.id, prompt="blue")
    client.videos.delete(video.id)


def test_a_recipe_is_put_on_and_taken_off(client: openai.OpenAI, server: Running) -> None:
    by_hand = {"plain": ours(recipe="plain", seed=5), "default": ours(seed=5)}
    made = {
        name: pictures(client.images.generate(prompt=RING, extra_body=body))[0]
        for name, body in [*by_hand.items(), *by_hand.items()]
    }
    assert np.abs(made["plain"] - made["default"]).max() == 0
    problems = server.service.engine.facts["shapes"].recipes["half"]
    if problems:  # on a machine without bfloat16
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt=RING, extra_body=ours(recipe="half"))
        assert caught.value.code == "recipe_does_not_fit"


def test_when_its_time_is_over_a_result_is_gone(tmp_path: Path) -> None:
    limits = Limits(keep_hours=1.5 / 3600)
    with running(ServerConfig(models=(SHAPES, MOVING), folder=tmp_path, limits=limits)) as server:
        client = server.client()
        picture = client.images.generate(prompt=RING, response_format="url")
        assert picture.data
        url = str(picture.data[0].url)
        video = client.videos.poll(client.videos.create(prompt=MOVES, extra_body=ours(steps=1)).id)
        assert video.expires_at in (int(video.completed_at or 0) + 1, int(video.completed_at or 0) + 2)
        assert client.videos.list().data
        until(lambda: httpx.get(url).status_code == 404, 5)
        until(lambda: not client.videos.list().data, 5)
        for call in (client.videos.retrieve, client.videos.download_content):
            with pytest.raises(openai.NotFoundError):
                call(video.id)
        server.service.results.sweep()
        assert list((tmp_path / "results").iterdir()) == []


def test_a_full_disk_is_said(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fewstep.server.images.Path.write_bytes", full)
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt=RING, response_format="url")
    assert caught.value.code == "disk_full"


def test_metrics_count_by_route(client: openai.OpenAI, server: Running) -> None:
    client.images.generate(prompt=RING, n=3)
    with server.http() as http:
        http.get("/v1/videos/video_1")
        said = http.get("/metrics").text
    assert 'fewstep_requests_total{route="/v1/videos/{id}",status="404"}' in said
    assert 'fewstep_call_seconds_count{kind="image",model="shapes"}' in said
    assert 'fewstep_waiting{kind="video"} 0.0' in said
    assert "process_resident_memory_bytes" in said
    assert "video_1" not in said
