"""Pictures and videos as tensors: their size, their middle, their frames, and what can't be read."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.distill.data.pictures import check, load
from fewstep.errors import InputError, MachineError


def gradient(height, width):
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return pixels


def test_a_picture_of_the_right_size_is_as_it_was(tmp_path):
    pixels = gradient(24, 16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    wanted = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    contained = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    for media in (tmp_path / "a.png", Image.fromarray(pixels), pixels, contained):
        torch.testing.assert_close(load(media, "a", (3, 24, 16)), wanted)
    assert torch.equal(load(pixels, "a", (3, 1, 24, 16))[:, 0], load(pixels, "a", (3, 24, 16)))


def test_the_middle_is_kept():
    small = load(gradient(100, 200), "a", (3, 50, 50))
    red, green = small[0].mean(dim=0) * 255, small[1].mean(dim=1) * 255
    torch.testing.assert_close(red, 50 + 2 * torch.arange(50) + 0.5, rtol=0, atol=1)  # columns 50 to 150 of 200
    torch.testing.assert_close(green, 2 * torch.arange(50) + 0.5, rtol=0, atol=1)


def test_other_modes_and_turned_photographs(tmp_path):
    Image.fromarray(gradient(8, 8)).convert("L").save(tmp_path / "grey.png")
    assert load(tmp_path / "grey.png", "grey", (3, 8, 8)).shape == (3, 8, 8)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter to the right
    Image.fromarray(gradient(16, 16) * 8).save(tmp_path / "turned.jpg", exif=turned, quality=95)
    red, green, _ = load(tmp_path / "turned.jpg", "turned", (3, 16, 16))
    assert red.mean(dim=1).diff().min() > 0
    assert green.mean(dim=0).diff().max() < 0


@pytest.fixture
def gif(tmp_path):
    frames = [Image.new("RGB", (16, 16), (20 * i, 0, 0)) for i in range(7)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    return tmp_path / "a.gif"


def test_frames_of_a_video(gif):
    for stride, wanted in {1: [0, 20, 40], 3: [0, 60, 120]}.items():
        frames = load(gif, "gif", (3, 3, 8, 8), stride)
        assert frames.shape == (3, 3, 8, 8)
        torch.testing.assert_close(frames[0, :, 4, 4] * 255, torch.tensor(wanted).float(), rtol=0, atol=2)
    array = np.stack([np.full((8, 8, 3), i, np.uint8) for i in range(5)])
    assert load(array, "array", (3, 3, 8, 8), 2)[0, :, 0, 0].mul(255).round().tolist() == [0, 2, 4]
    with pytest.raises(InputError, match=r"^gif is too short: 4 frames at a stride of 3 take 10\.$"):
        check(gif, "gif", (3, 4, 8, 8), 3)


def test_videos_and_pictures_are_not_taken_for_each_other(gif):
    with pytest.raises(InputError, match=r"^gif is a video, and this pipeline makes pictures\.$"):
        check(gif, "gif", (3, 8, 8))
    with pytest.raises(InputError, match=r"^a is a picture, and this pipeline makes videos of 5 frames\.$"):
        check(gradient(8, 8), "a", (3, 5, 8, 8))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("how", ["cut", "text", "empty"])
def test_what_can_not_be_read_is_named_when_looked_at(tmp_path, suffix, how):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    check(path, str(path), (3, 64, 64))
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"no picture", "empty": b""}[how])
    for read in (check, load):
        with pytest.raises(InputError, match=rf"^.*a\{suffix} can't be read as a picture: ") as caught:
            read(path, str(path), (3, 64, 64))
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("imageio") is not None, reason="imageio is installed")
def test_without_its_extra_a_video_is_one_sentence(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(MachineError, match=r"^Reading a video needs .*: pip install 'fewstep\[data\]'\.$"):
        check(tmp_path / "a.mp4", "a", (3, 5, 8, 8))


def test_a_video_file_is_read(tmp_path):
    writer = pytest.importorskip("imageio.v3")
    frames = np.stack([np.full((64, 64, 3), 30 * i, np.uint8) for i in range(6)])
    writer.imwrite(tmp_path / "a.mp4", frames, fps=8)
    found = load(tmp_path / "a.mp4", "a", (3, 3, 32, 32), 2)
    torch.testing.assert_close(found[0, :, 9, 9] * 255, torch.tensor([0.0, 60.0, 120.0]), rtol=0, atol=6)
