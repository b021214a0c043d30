"""A picture of any format, name and orientation is a clip of one frame with the pixels that a viewer shows."""

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageOps

from vidjax.data.orientation import EXIF
from vidjax.data.pictures import SUFFIXES, Pictures, read_picture
from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.readers import make_source
from vidjax.data.source import open_clip
from vidjax.data.video_reading import BrokenClip, Video
from vidjax.generation.editing import latent_mask


def picture(name="JPEG", content=None, **how):
    file = io.BytesIO()
    Image.fromarray(np.zeros((6, 8, 3), np.uint8) if content is None else content).save(file, name, **how)
    return file.getvalue()


@pytest.mark.parametrize("suffix", sorted(SUFFIXES | {s.upper() for s in SUFFIXES}))
@pytest.mark.parametrize("stem", ["still", "0", "IMG_0001", "a%03d", "b*?[1]"])
def test_a_picture_is_a_clip_of_one_frame_whatever_its_name(tmp_path, frames, stem, suffix):
    path = tmp_path / f"{stem}{suffix}"
    Image.fromarray(frames[0]).save(path)
    for file in (path, str(path), path.read_bytes()):
        with open_clip(file) as clip:
            assert (clip.frames, clip.height, clip.width) == (1, *frames.shape[1:3])
            assert abs(clip.read([0])[0].astype(int) - frames[0]).mean() < 6
            assert clip.encoded == path.read_bytes()


def test_a_folder_of_photos_is_read_as_pictures(tmp_path):
    """As they come from a camera; noise, of which no decoder is sure that it is a photo."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8)
    for i, name in enumerate(("IMG_0001.JPG", "IMG_0002.jpg", "3.jpeg")):
        (tmp_path / name).write_bytes(picture("JPEG", noise[i]))
    source = make_source("images", str(tmp_path), "")
    assert len(source) == 3
    batch = next(
        make_dataset(DataConfig(source="images", path=str(tmp_path), frames=1, size=(40, 60)), seed=0).batches(3)
    )
    for video, index in zip(batch["video"], batch["index"]):
        with Image.open(source[int(index)].name) as image:
            np.testing.assert_array_equal(video[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("value", [1, *EXIF, 9, 60_000])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_photos_are_turned_as_pillow_turns_them(tmp_path, form, value):
    """Against Pillow's own reading of EXIF; a corner of another colour, so that no two orientations look alike."""
    content = np.zeros((32, 48, 3), np.uint8)
    content[:8, :8], content[:8, 40:], content[24:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = value
    path = tmp_path / "0.jpg"
    path.write_bytes(picture(form, content, exif=exif))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_picture(path), expected)
    clip = Pictures(tmp_path)
    assert (clip.height, clip.width) == expected.shape[:2]
    np.testing.assert_array_equal(clip.read([0])[0], expected)
    np.testing.assert_array_equal(open_clip(path).read([0])[0], expected)


def test_exif_that_is_damaged_turns_nothing():
    content = picture("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert read_picture(content).shape == (6, 8, 3)


@pytest.mark.parametrize("form, suffix", [("PNG", ".png"), ("PPM", ".ppm")])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, form, suffix):
    """0 to 65535 is 0 to 255 in equal steps: depth maps and masks of many tools."""
    grey = np.linspace(0, 65535, 16 * 24).reshape(16, 24).astype(np.uint16)
    expected = np.round(grey / 257.0).astype(np.uint8)
    path = tmp_path / f"0{suffix}"
    Image.fromarray(grey).save(path, form)
    np.testing.assert_array_equal(read_picture(path, "L"), expected)
    for clip in (Pictures(tmp_path), open_clip(path)):
        np.testing.assert_array_equal(clip.read([0])[0], np.repeat(expected[..., None], 3, 2))
    mask = latent_mask(str(path), "", (1, 16, 24), (1, 16, 24))
    np.testing.assert_array_equal(mask[0], expected >= 128)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_is_a_clip_of_its_frames(tmp_path, frames, form):
    file = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in frames[:5]]
    first.save(
        file, form, save_all=True, append_images=others, duration=125, **({"lossless": True} if form == "WEBP" else {})
    )
    with open_clip(file.getvalue()) as clip:
        assert (clip.frames, clip.fps) == (5, 8.0)
        np.testing.assert_array_equal(clip.read([4, 0, 2]), frames[[4, 0, 2]])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "PPM"])
def test_a_damaged_picture_is_a_broken_clip(frames, form):
    whole = picture(form, frames[0])
    for content in (whole[: len(whole) // 2], whole[:20], whole[:8] + b"\xff" * 200):
        with pytest.raises(BrokenClip, match="not a readable"):
            open_clip(content)
    with pytest.raises(BrokenClip, match="not a readable video"):
        Video(whole)  # never by the decoders of videos, which know pictures by their names


def test_captions_lie_beside_pictures_in_capitals(tmp_path):
    (tmp_path / "A.JPG").write_bytes(picture())
    (tmp_path / "A.txt").write_text("a dog")
    assert make_source("images", str(tmp_path), "")[0].text == "a dog"
    assert re.fullmatch(r".*A\.JPG", make_source("images", str(tmp_path), "")[0].name)
