"""LoRA files and subjects in sampling, as a user asks for them; what does not fit is said in one line."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from starts import program
from tiny_folder import write_folder

from vidjax.diffusion.schedule import cosine
from vidjax.errors import InputError
from vidjax.generation.adapters import merge_lora_files, parse
from vidjax.generation.generator import Generator
from vidjax.generation.options import SampleConfig, Subject
from vidjax.generation.pretrained import load_generator
from vidjax.generation.subjects import read_subject
from vidjax.models.flow_unet import FlowUNet, FlowUNetConfig
from vidjax.models.lora import layers_of, lora_tensors, merge_loras
from vidjax.models.parameters import parameters
from vidjax.models.video_model import VideoModel
from vidjax.training.strategies import strategy
from vidjax.weights import lora, pretrained

ROOT = Path(__file__).parents[2]
HOW = dict(num_steps=3, guidance_scale=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("sd") / "folder")


@pytest.fixture(scope="module")
def tensors(folder):
    """Two adapters as if trained, on the U-Net and the text encoder."""
    random, made = np.random.default_rng(0), {}
    for name in ("style", "fox"):
        model = pretrained.load(folder).model
        strategy("lora", rank=2, text=True).surgery(model, nnx.Rngs(0))
        found = lora_tensors(model)
        assert {key.split(".")[0] for key in found} == {"unet", "text"}
        made[name] = {
            k: v if k.endswith("alpha") else 0.3 * random.standard_normal(v.shape, "f") for k, v in found.items()
        }
    return made


@pytest.fixture(scope="module")
def files(tensors, tmp_path_factory):
    return {
        name: str(lora.save(tmp_path_factory.mktemp(name), value, blocks_per_level=1))
        for name, value in tensors.items()
    }


@pytest.fixture(scope="module")
def generator(folder):
    return load_generator(folder, defaults=SampleConfig(**HOW))


@pytest.fixture(scope="module")
def sampled(folder, env, tmp_path_factory):
    """`sampled(*flags)`: the latents that the program wrote."""
    out = tmp_path_factory.mktemp("sampled")

    def run(*flags, fails=False):
        how = [f"--{name}={value}" for name, value in HOW.items()]
        how += [f"--out={out / 'pictures'}", f"--save_latents={out / 'z.npy'}"]
        done = program("sample", f"--pretrained={folder}", "--prompt=a cat", *flags, *how, env=env)
        assert done.returncode == fails, done.stderr
        return done.stderr if fails else np.load(out / "z.npy")

    return run


def test_two_at_once_are_both_merged_by_hand_and_none_at_weight_zero(files, tensors, generator):
    style, fox = files["style"], files["fox"]
    by_hand = merge_loras(generator.params, {"a": (tensors["style"], 0.5), "b": (tensors["fox"], 1.0)})
    both, none = merge_lora_files(generator, [f"{style}:0.5", fox]), merge_lora_files(generator, [f"{style}:0"])
    changed = {path for path, value in generator.params.items() if not np.array_equal(both[path], value)}
    assert changed == {f"{layer}.kernel" for layer in layers_of(tensors["fox"])}
    for path, value in generator.params.items():
        np.testing.assert_array_equal(both[path], by_hand[path])
        assert np.asarray(none[path]).tobytes() == np.asarray(value).tobytes()


def test_what_is_no_adapter_of_this_model_is_one_line(sampled, files, generator, tmp_path):
    other = {"unet.mid.9.attention.blocks.0.attn1.to_q.lora_down": np.ones((4, 2))}
    other |= {"unet.mid.9.attention.blocks.0.attn1.to_q.lora_up": np.ones((2, 4))}
    wrong = lora.save(tmp_path, other, blocks_per_level=1)
    said = sampled(f"--lora={wrong}", fails=True)
    assert len(said.splitlines()) == 1 and "belongs to another model" in said
    (tmp_path / "text.safetensors").write_text("no adapter")
    for asked, says in (
        ([f"{tmp_path}/text.safetensors"], "can't be read as safetensors"),
        (["/nowhere.safetensors"], "/nowhere.safetensors can't be read"),
        ([f"{files['fox']}:much"], "'much' is no weight"),
        ([f"{files['fox']}:nan"], "'nan' is no weight"),
        ([files["fox"], f"{files['fox']}:0.5"], "is there twice"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            merge_lora_files(generator, asked)
        assert "\n" not in str(caught.value)


def test_a_network_without_these_layers_takes_no_adapter(files):
    config = FlowUNetConfig(in_channels=3, channels=(8,), groups=4, heads=1, head_dim=4, vector_dim=None)
    model = VideoModel(FlowUNet(config, rngs=nnx.Rngs(0)), {})
    how = (cosine(), "eps", None, (2, 4, 4), 3, SampleConfig())
    flows = Generator(nnx.graphdef(model), parameters(model), *how)
    with pytest.raises(InputError, match="this model has another; leave it out"):
        merge_lora_files(flows, [files["fox"]])


def test_a_name_with_a_colon_is_a_name(tmp_path):
    (tmp_path / "a:1").touch()
    assert parse(str(tmp_path / "a:1")) == (str(tmp_path / "a:1"), 1.0)
    assert parse(f"{tmp_path / 'a:1'}:0.5") == (str(tmp_path / "a:1"), 0.5)
    assert parse("b:-2") == ("b", -2.0)


def picture(path, white):
    Image.fromarray(np.where(white, 255, 0).astype(np.uint8)).save(path)
    return path


def test_the_program_merges_and_a_subject_everywhere_is_its_own_model(sampled, files, generator, tmp_path):
    """A white mask: the subject's prompt, with the adapters of all and its own; the main prompt is unheard."""
    white = picture(tmp_path / "all.png", np.ones((16, 16), bool))
    inside = sampled(f"--lora={files['style']}:0.5", f"--subject=the fox|{white}|{files['fox']}")
    plain = np.asarray(generator.latents(["the fox"]))
    generator.params, base = merge_lora_files(generator, [f"{files['style']}:0.5", files["fox"]]), generator.params
    alone = np.asarray(generator.latents(["the fox"]))
    generator.params = base
    np.testing.assert_allclose(inside, alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(plain, alone, atol=0.1)


def test_each_subject_acts_in_its_mask(generator, files, tmp_path):
    """One step of DDIM is linear in the answers: in its half each subject's is what it gives alone."""
    left = np.zeros((16, 16), bool)
    left[:, :8] = True
    top = np.zeros((16, 16), bool)
    top[:4, 12:] = True
    fox = read_subject(generator, f"the fox | {picture(tmp_path / 'l.png', left)} | {files['fox']}")
    cat = read_subject(generator, f"a cat|{picture(tmp_path / 't.png', top)}")
    assert cat.params is None and fox.params is not None
    shared = [path for path, value in fox.params.items() if value is generator.params[path]]
    assert (
        0 < len(shared) == len(fox.params) - len(layers_of(lora.load(files["fox"], 1)))
    )  # what no adapter touches is there once
    noise = np.asarray(jax.random.normal(jax.random.key(3), (1, 1, 8, 8, 4)))
    one = dict(noise=noise, num_steps=1, guidance_scale=2.0)
    alone = {prompt: generator.latents([prompt], **one) for prompt in ("a cat", "x")}
    generator.params, base = fox.params, generator.params
    alone["the fox"] = generator.latents(["the fox"], **one)
    generator.params = base
    mixed = np.asarray(generator.latents(["x"], subjects=[fox, cat], **one))[0, 0]
    for name, where in (("the fox", fox.mask[0]), ("a cat", cat.mask[0]), ("x", ~(fox.mask | cat.mask)[0])):
        np.testing.assert_allclose(mixed[where], np.asarray(alone[name])[0, 0][where], rtol=1e-4, atol=1e-5)
        assert where.any()
    with pytest.raises(InputError, match=r"mask of 'a dog' is \(1, 4, 4\), the latents are \(1, 8, 8\)"):
        generator.latents(["x"], subjects=[Subject("a dog", np.ones((1, 4, 4), bool))], **one)


def test_a_subject_that_does_not_fit_is_one_line(sampled, generator, tmp_path):
    small, black = (picture(tmp_path / f"{n}.png", np.zeros((n, n), bool)) for n in (8, 16))
    said = sampled(f"--subject=a fox|{small}", fails=True)
    assert len(said.splitlines()) == 1 and "has 8x8 pixels, the clip 16x16" in said
    for text, says in (
        (f"a fox|{black}", "has no white pixel"),
        ("a fox", "is not written PROMPT"),
        ("a fox|/nowhere.png", "cannot be read"),
        (f"a|{black}|b|c", "is not written PROMPT"),
    ):
        with pytest.raises(InputError, match=says):
            read_subject(generator, text)
