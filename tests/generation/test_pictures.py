"""Pictures that videos begin with: reading, fitting, and a model of random weights that moves them."""

import json
import shutil

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_folder import MIDDLE, STABLE_VIDEO, STABLE_VIDEO_MIDDLE, write_folder

from vidjax import sample
from vidjax.errors import InputError
from vidjax.generation.cascade import Cascade
from vidjax.generation.pictures import (
    default_size,
    fit_pictures,
    hints,
    known_pictures,
    read_pictures,
    read_places,
)
from vidjax.generation.pretrained import load_generator
from vidjax.weights import pretrained

SIZE = (16, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("svd") / "folder", unet=STABLE_VIDEO_MIDDLE, configs=STABLE_VIDEO)


@pytest.fixture(scope="module")
def folder_of_text(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("text") / "folder", unet=MIDDLE)


@pytest.fixture
def parsed_flags():
    flags.FLAGS.mark_as_parsed()
    yield
    flags.FLAGS.unparse_flags()


def test_pictures_are_turned_put_on_white_and_cut_to_size(tmp_path):
    """A red left half that EXIF turns upright is the upper one; what is transparent is white, half of it half."""
    halves = np.zeros((20, 40, 3), np.uint8)
    halves[:, :20, 0] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(halves).save(tmp_path / "a.png", exif=turned)
    Image.fromarray(np.tile(np.uint8([[[0, 0, 0, 0], [0, 0, 0, 255]]]), (2, 1, 1))).save(tmp_path / "b.png")
    upright, clear = read_pictures([tmp_path / "a.png", tmp_path / "b.png"])
    assert upright.shape == (40, 20, 3)
    assert (upright[:20] == [255, 0, 0]).all() and not upright[20:].any()
    assert (clear[:, 0] == 255).all() and not clear[:, 1].any()
    fitted = fit_pictures([upright, clear], SIZE)
    assert fitted.shape == (2, *SIZE, 3)
    assert (fitted[0, 0] == [255, 0, 0]).all() and not fitted[0, -1].any()  # the middle of the tall one, not squeezed
    with pytest.raises(InputError, match=r"--image=.*c\.png does not exist; name a picture"):
        read_pictures([tmp_path / "c.png"])
    (tmp_path / "c.png").write_text("no picture")
    with pytest.raises(InputError, match="is not a readable picture; name a PNG"):
        read_pictures([tmp_path / "c.png"])


def test_a_tall_picture_turns_the_video_unless_its_size_is_given():
    tall, wide = np.zeros((4, 3, 3), np.uint8), np.zeros((3, 4, 3), np.uint8)
    assert default_size(tall, (576, 1024), None, None) == (1024, 576)
    assert default_size(wide, (576, 1024), None, None) == (576, 1024)
    assert default_size(tall, (576, 1024), 64, None) == (64, 1024)


def test_what_a_video_is_told_and_shown(folder):
    """Guidance of 1 at the first frame alone leaves it what the picture says; each of the numbers and the picture
    matter, in no other example than its own."""
    generator = load_generator(folder)
    pictures = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    how = dict(size=SIZE, num_steps=2, picture_noise=0.0)
    sample = lambda pictures=pictures, **more: np.asarray(generator.latents(["", ""], pictures=pictures, **how | more))
    base = sample()
    assert base.shape == (2, 3, 8, 12, 4)
    for change in (dict(fps=20.0), dict(motion_bucket=10.0), dict(picture_noise=0.5), dict(guidance_scale=1.0)):
        assert np.abs(sample(**change) - base).max() > 1e-4
    other = sample(np.stack([pictures[0], 255 - pictures[1]]))
    np.testing.assert_allclose(other[0], base[0], atol=1e-4 * np.abs(base).max())
    assert np.abs(other[1] - base[1]).max() > 1e-4
    whole, parts = generator.decode(base), generator.decode(base, 1)
    assert (whole != parts).any()  # one frame at a time sees no neighbours


@pytest.mark.parametrize(
    "prompts, pictures, said",
    [
        (["a cat"], np.zeros((1, *SIZE, 3), np.uint8), "does not read text; it knows picture"),
        ([""], None, "moves a picture and has none: give it one, --image"),
        ([""], np.zeros((2, *SIZE, 3), np.uint8), "there are 2 pictures for 1 videos; give one each"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(folder, prompts, pictures, said):
    with pytest.raises(InputError, match=said):
        load_generator(folder).latents(prompts, pictures=pictures, size=SIZE)


def test_a_model_of_pictures_is_not_inverted(folder):
    generator, latents = load_generator(folder), np.zeros((1, 3, *SIZE, 4), "f")
    said = "is of models of text alone, this one knows picture; "
    with pytest.raises(InputError, match=f"inversion {said}edit with sample.invert=False and sample.strength below 1"):
        generator.invert(latents, [""])
    with pytest.raises(InputError, match=f"null_text {said}leave it out"):
        generator.null_text(latents, [""])


@pytest.mark.parametrize("call", ["sample", "in_motion", "null_text"])
def test_a_suffix_is_added_to_the_prompt_however_it_is_sampled(folder_of_text, call):
    class Read(Exception):
        """Says what the first prompt is."""

    def tokenize(prompt):
        raise Read(prompt)

    generator, how = load_generator(folder_of_text), dict(suffix=", sharp", guidance_scale=2.0)
    generator.tokenize = tokenize
    ways = {
        "sample": lambda: generator.latents(["fox"], frames=2, size=SIZE, **how),
        "in_motion": lambda: generator.in_motion(["fox"], (1.0, 0.0), frames=2, size=SIZE, **how),
        "null_text": lambda: generator.null_text(np.zeros((1, 2, 2, 3, 4), "f"), ["fox"], **how),
    }
    with pytest.raises(Read, match=r"^fox, sharp$"):
        ways[call]()


def test_models_of_text_see_no_picture(folder_of_text):
    generator = load_generator(folder_of_text)
    said = "sees no picture, it knows text: those that do move pictures .*, are a Stable Diffusion with --control"
    with pytest.raises(InputError, match=said):
        generator.latents([""], pictures=np.zeros((1, *SIZE, 3), np.uint8), size=SIZE)


def test_a_folder_goes_out_bit_equal(folder, tmp_path):
    pretrained.save(pretrained.load(folder).model, folder, tmp_path / "out")
    there = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert there == sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*"))
    for name in there:
        before, after = ((root / name).read_bytes() for root in (folder, tmp_path / "out"))
        assert before == after if name.suffix == ".safetensors" else json.loads(before) == json.loads(after)


def test_a_broken_folder_is_refused_in_one_line(folder, tmp_path):
    for part, damage, said in (
        ("image_encoder/config.json", None, r"image_encoder/config.json does not exist; a folder needs unet/, vae/, i"),
        ("vae/diffusion_pytorch_model.safetensors", None, "vae has no weights"),
        ("unet/diffusion_pytorch_model.safetensors", "rename", r"unet: .*no key for parameter conv_in.bias; no para"),
        ("image_encoder/model.safetensors", "reshape", r"image_encoder: .*class_embedding has shape \(9,\), parameter"),
    ):
        broken = shutil.copytree(folder, tmp_path / part.replace("/", "-"))
        tensors = load_file(folder / part) if damage else {}
        (broken / part).unlink()
        if damage == "rename":
            tensors["conv_in.bios"] = tensors.pop("conv_in.bias")
        elif damage:
            tensors["vision_model.embeddings.class_embedding"] = np.zeros(9, "f")
        if damage:
            save_file(tensors, broken / part)
        with pytest.raises(InputError, match=said) as caught:
            pretrained.load(broken)
        assert "\n" not in str(caught.value)


def test_places_are_counted_from_both_ends():
    assert read_places((0, -1), 16) == [0, 15]
    for wrong in ((), (16,), (-17,), (15, -1)):
        with pytest.raises(InputError, match="are no different frames of 16, which are 0 to 15"):
            read_places(wrong, 16)


def test_pictures_are_known_in_the_latents_of_their_frames():
    """A picture stands still in the frames that a latent is of; two of them cannot be one latent."""
    pictures = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), np.uint8)
    pairs = lambda frames: frames.reshape(len(frames), -1, 2, *frames.shape[2:])
    still = lambda frames: pairs(frames).mean(2, dtype=np.float32)
    latents, mask = known_pictures(pictures, (1, -1), 2, (6, 2, 2, 3), still, 2)
    np.testing.assert_array_equal(mask, [1, 0, 1])
    np.testing.assert_array_equal(latents[:, [0, 2]], pictures.reshape(2, 2, 2, 2, 3))
    with pytest.raises(InputError, match="--image_at=4,-1: this model joins 2 frames, name one in each of 0:2"):
        known_pictures(pictures, (4, -1), 2, (6, 2, 2, 3), still, 2)


def test_a_control_is_shown_pictures_where_they_are():
    """One is that of all frames; of several each is in its place, the others are empty; sparse ones say which."""
    pictures = np.full((2, 2, 2, 3), 255, np.uint8)
    assert (hints(pictures, (0,), 2, (3, 2, 2, 3), None, sparse=False) == 1).all()
    several = hints(pictures, (0, 2), 1, (3, 2, 2, 3), None, sparse=False)
    sparse = hints(pictures, (0, 2), 1, (3, 2, 2, 3), None, sparse=True)
    for shown in (several, sparse[..., :3], sparse[..., 3:]):
        assert (shown[:, [0, 2]] == 1).all() and (shown[:, 1] == 0).all()
    assert several.shape == (1, 3, 2, 2, 3) and sparse.shape == (1, 3, 2, 2, 4)


def test_flags_of_pictures_are_refused_where_they_do_nothing(folder, folder_of_text, parsed_flags):
    """What another model is told, or none: in one line, before anything is sampled."""
    generator, pictures = load_generator(folder_of_text), load_generator(folder)
    for given, model, said in (
        (dict(image=["a.png"], motion_bucket=99.0), generator, "--motion_bucket is told to Stable Video Diffusion alo"),
        (dict(image=["a.png"]), Cascade([generator]), "--image: this run's videos are made larger stage by stage"),
    ):
        with flagsaver.flagsaver(**given), pytest.raises(InputError, match=said):
            sample.check_pictures(model)
    with flagsaver.flagsaver(image=["a.png"], motion_bucket=99.0):
        sample.check_pictures(pictures)
    with flagsaver.flagsaver(workdir="w", picture_twice=False), pytest.raises(InputError, match="is for --pretrained"):
        sample.check_flags()
    with pytest.raises(InputError, match=r"--picture_twice\) is of I2VGen-XL"):
        pretrained.load(folder_of_text, weights=False, twice=False)
    with flagsaver.flagsaver(known=1, frames=9), pytest.raises(InputError, match="--known is of models that take no p"):
        sample.check_pictures(pictures)
    with pytest.raises(InputError, match="--motion is of models of text alone, this one knows picture"):
        pictures.in_motion([""], (0.0, 1.0), frames=2)
