"""VideoCrafter's files against torch modules of their layout (videocrafter_layout.py), on random weights."""

import importlib
import re
from pathlib import Path
from shutil import copytree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from as_users import latents_of, run, tune  # noqa: E402
from flax import nnx  # noqa: E402
from parity import videocrafter_layout as layout  # noqa: E402
from parity.gradients import check_gradients  # noqa: E402
from parity.test_lvdm import state_of  # noqa: E402
from parity.test_pipeline import LENGTH, VOCABULARY, error, refill, tokenizer  # noqa: E402
from parity.test_single_file import as_convolution, ldm_autoencoder, open_clip  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from test_configs import config  # noqa: E402

from vidjax.diffusion.schedule import scaled_linear  # noqa: E402
from vidjax.errors import InputError  # noqa: E402
from vidjax.generation.pretrained import load_generator  # noqa: E402
from vidjax.models.keys import Keys, OneKey  # noqa: E402
from vidjax.models.lora import lora_tensors  # noqa: E402
from vidjax.models.unet import UNet  # noqa: E402
from vidjax.recipes.build import build  # noqa: E402
from vidjax.recipes.run import Run  # noqa: E402
from vidjax.training.strategies import strategy  # noqa: E402
from vidjax.weights import convert, lora, pretrained  # noqa: E402
from vidjax.weights.convert import rename  # noqa: E402
from vidjax.weights.single_file import UNET  # noqa: E402
from vidjax.weights.video_file import Entries, Entry  # noqa: E402
from vidjax.weights.videocrafter import CRAFTER, ENCODER, RESAMPLER, CrafterFile  # noqa: E402

CLIPS = Path(__file__).parents[2] / "vidjax" / "clips" / "real"
FRAMES, SIZE, TOKENS, QUERIES = 3, (8, 12), 128, 4
TINY = dict(width=64, mult=(1, 2), n=1, attends=(True, False), head=16, tokens_dim=TOKENS)
FULL = dict(width=320, mult=(1, 2, 4, 4), n=2, attends=(True, True, True, False), head=64, tokens_dim=1024)
KINDS = {
    "512-v1": dict(relative=True),
    "512-v2": dict(convs=True, fps=True),
    "1024": dict(relative=True, fps=True),
    "i2v": dict(convs=True, fps=True, picture=QUERIES),
}
ONE_LEVEL = dict(mult=(1,), attends=(True,))  # compiles sooner
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # mean and deviation
PIPELINE = importlib.import_module("diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion")
LAYERS = (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"))
LAYERS += (("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"))


def open_clip_image(model):
    """The tensors of an image tower under OpenCLIP's names, with a projection that nothing reads."""
    own = {key.removeprefix("vision_model."): value.numpy().copy() for key, value in model.state_dict().items()}
    state = {
        "class_embedding": own["embeddings.class_embedding"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "conv1.weight": own["embeddings.patch_embedding.weight"],
        "proj": np.ones((model.config.hidden_size, 7), "f"),
    }
    for kind in ("weight", "bias"):
        state |= {f"ln_pre.{kind}": own[f"pre_layrnorm.{kind}"], f"ln_post.{kind}": own[f"post_layernorm.{kind}"]}
        for i in range(model.config.num_hidden_layers):
            at, there = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
            qkv = [own[f"{there}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            state[f"{at}attn.in_proj_{kind}"] = np.concatenate(qkv)
            state |= {f"{at}{a}.{kind}": own[f"{there}{b}.{kind}"] for a, b in LAYERS}
    return state


def write(folder, kind):
    """(a file of this kind, its networks by name)."""
    folder.mkdir()
    parts = {"unet": refill(layout.UNet(**{**TINY, **({} if kind == "512-v1" else ONE_LEVEL), **KINDS[kind]}))}
    levels = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    vae = refill(diffusers.AutoencoderKL(block_out_channels=(32, 64), layers_per_block=1, **levels))
    size = dict(hidden_size=TOKENS, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2)
    places = dict(vocab_size=len(VOCABULARY), max_position_embeddings=LENGTH, hidden_act="gelu")
    parts["text"] = refill(transformers.CLIPTextModel(transformers.CLIPTextConfig(**size, **places)))
    tokenizer(folder / "tokenizer", "sd1").save_pretrained(folder / "tokenizer")
    state = state_of(parts["unet"], "model.diffusion_model")
    for key, value in vae.state_dict().items():
        own = f"first_stage_model.{ldm_autoencoder(key, 2)}"
        state[own] = as_convolution(own, value.numpy())
    state |= open_clip(parts["text"], {key: value.numpy() for key, value in parts["text"].state_dict().items()})
    if kind == "i2v":
        huge = dict(hidden_size=80, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1)
        places = dict(image_size=224, patch_size=56, hidden_act="gelu")
        parts["image"] = refill(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**huge, **places)))
        parts["resampler"] = refill(layout.Resampler(80, 64, TOKENS, QUERIES, 2, 2))
        state |= {ENCODER + key: value for key, value in open_clip_image(parts["image"]).items()}
        state |= {"embedder.model.logit_scale": np.ones((), "f"), **state_of(parts["resampler"], RESAMPLER[:-1])}
    state |= {"betas": np.ones(1000, "f")}
    file = folder / f"{kind}.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, file)
    return file, parts


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return {kind: write(tmp_path_factory.mktemp("crafter") / kind, kind) for kind in ("512-v1", "i2v")}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype="f")


def to_torch(x):
    return torch.from_numpy(np.moveaxis(x, -1, 2).copy())


@pytest.mark.parametrize("kind", ["512-v1", "i2v"])
def test_unet_and_its_gradients(kind, files):
    """Relative positions without a rate, and convolutions with one and a picture's tokens."""
    path, parts = files[kind]
    file, unet, loaded = CrafterFile(path), parts["unet"], pretrained.load(path)
    x, t, weight = normal(2, FRAMES, 4, 6, 4), np.array([3, 741]), normal(2, FRAMES, 4, 6, 4, seed=1)
    tokens, fps = normal(2, 5 + QUERIES, TOKENS, seed=2), np.array([8.0, 28.0], "f") if kind == "i2v" else None
    video = to_torch(x).requires_grad_()
    out = unet(video, torch.from_numpy(t), torch.from_numpy(tokens), None if fps is None else torch.from_numpy(fps))
    unet.zero_grad()
    (out * to_torch(weight)).sum().backward()
    graph, state = nnx.split(loaded.model.unet)
    vector = None if fps is None else loaded.model.fps(jnp.asarray(fps))["vector"]

    def loss(state, x):
        got = nnx.merge(graph, state)(x, jnp.broadcast_to(t[:, None], (2, FRAMES)), jnp.asarray(tokens), vector)
        return (got * weight).sum(), got

    (_, got), (grads, into) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(state, jnp.asarray(x))
    assert error(np.moveaxis(got, -1, 2), out.detach().numpy()) <= 1e-5
    assert error(np.moveaxis(into, -1, 2), video.grad.numpy()) <= 1e-4
    grads = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(grads)}
    theirs = {UNET + key: value.grad.numpy() for key, value in unet.named_parameters()}
    entries = file.fillings(loaded.model)[0].entries
    expected = convert.fit({k: v.shape for k, v in grads.items()}, Entries(theirs, entries), [])
    check_gradients(grads, expected)


def test_ten_steps_from_a_picture_and_a_prompt(files):
    """Both are read as theirs reads them; DDIM with x0 scaled down under noise, guidance away from no text and a grey
    picture; the rate is told to both."""
    path, parts = files["i2v"]
    frame, noise = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8), normal(1, FRAMES, 4, 6, 4)
    guidance, fps, steps = 12.0, 9.0, 10
    generator = load_generator(path)
    assert generator.size == (16, 320, 512) and generator.defaults.guidance_scale == guidance
    assert (generator.defaults.eta, generator.defaults.fps) == (1.0, 8.0)
    ids = [tokenizer_ids(path, prompt) for prompt in ("the cat", "")]
    pictures = torch.from_numpy(np.moveaxis(frame / np.float32(127.5) - 1, -1, 1))
    pictures = torch.cat([PIPELINE._resize_with_antialiasing(pictures, (224, 224)), torch.zeros(1, 3, 224, 224)])
    mean, std = (torch.tensor(a)[:, None, None] for a in CLIP_PIXELS)
    with torch.no_grad():
        text = parts["text"](torch.tensor(np.stack(ids))).last_hidden_state
        seen = parts["image"](((pictures + 1) / 2 - mean) / std).last_hidden_state
        tokens = torch.cat([text, parts["resampler"](seen)], 1)
        predict = lambda x, t: parts["unet"](torch.cat([x, x]), torch.tensor([t, t]), tokens, torch.tensor([fps, fps]))
        alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()
        scale = torch.cat([torch.linspace(1, 0.7, 400), torch.full((600,), 0.7)])
        x, times = to_torch(noise), np.arange(0, 1000, 1000 // steps) + 1
        for i in reversed(range(steps)):
            t, before = times[i], times[i - 1] if i else 0
            own, away = predict(x, t).chunk(2)
            eps = away + guidance * (own - away)
            x0 = (x - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt() / scale[t]
            x = alphas[before].sqrt() * scale[before] * x0 + (1 - alphas[before]).sqrt() * eps
    got = generator.latents(
        ["the cat"], pictures=frame, frames=FRAMES, size=SIZE, noise=noise, num_steps=steps, fps=fps, eta=0.0
    )
    assert error(np.moveaxis(got, -1, 2), x.numpy()) <= 1e-3


@pytest.mark.parametrize("kind", ["512-v1", "i2v"])
def test_out_again_bit_equal(kind, files, tmp_path):
    """All of it, also what nothing here reads; and it is read again."""
    path, _ = files[kind]
    pretrained.save_single_file(pretrained.load(path).model, path, tmp_path / "out")
    before, after = load_file(path), load_file(tmp_path / "out" / path.name)
    assert before.keys() == after.keys()
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    pretrained.load(tmp_path / "out" / path.name, weights=False)


COUNTS = {"512-v1": 1_144_485_956, "512-v2": 1_413_284_420, "1024": 1_146_536_516, "i2v": 1_438_843_460}
KEYS = {"512-v1": 1196, "512-v2": 1484, "1024": 1200, "i2v": 1516}
SCALES = {"512-v1": 1.0, "512-v2": 0.7, "1024": 0.3, "i2v": 0.7}


@pytest.mark.parametrize("kind", KINDS)
def test_at_full_size_the_counts_are_the_published_ones(kind):
    """Every key of the U-Net is used once, every parameter filled; shapes say what it is told and how x0 is scaled."""
    with torch.device("meta"):
        theirs = {UNET + key: value for key, value in layout.UNet(**FULL, **KINDS[kind]).state_dict().items()}
    state = {key: np.broadcast_to(np.uint8(0), tuple(value.shape)) for key, value in theirs.items()}
    assert len(state) == KEYS[kind]
    more = {"image_proj_model." + key: value for key, value in layout.Resampler(queries=QUERIES).state_dict().items()}
    file = object.__new__(CrafterFile)
    file.__dict__.update(path="model", all=Held({**state, **(more if kind == "i2v" else {})}))
    config = file.unet()
    assert (config.heads, config.picture_tokens) == ((5, 10, 20, 20), QUERIES if kind == "i2v" else 0)
    model = nnx.eval_shape(lambda: UNet(config, rngs=OneKey()))
    leaves = {path: leaf.shape for path, leaf in convert.parameters(model).items()}
    entries = {rename(key, CRAFTER): Entry(UNET + key) for key in file.shapes}
    fitted = convert.fit(leaves, Entries(state, entries), [])
    assert fitted.keys() == leaves.keys()
    assert sum(value.size for value in fitted.values()) == COUNTS[kind]
    ratio = lambda: file.schedule().alpha(700) / scaled_linear().alpha(700)
    np.testing.assert_allclose(ratio(), SCALES[kind], rtol=1e-5)
    file.all["scale_arr"] = np.float32([1.0, *[0.5] * 1399])  # of which files may have a table
    np.testing.assert_allclose(ratio(), 0.5, rtol=1e-5)


class Held(dict):
    """What a file has, by key."""

    @property
    def places(self):
        return self


def test_files_that_do_not_fit_are_refused_in_one_line(files, tmp_path):
    path, _ = files["i2v"]
    state, key = load_file(path), "middle_block.2.proj_out.weight"
    words, query = "cond_stage_model.model.ln_final.weight", "init_attn.0.transformer_blocks.0.attn1.to_q.weight"
    wide = {UNET + "input_blocks.0.0.weight": np.zeros((64, 8, 3, 3), "f")}
    for name, change, says in (
        ("missing", {UNET + key: None}, "no key for parameter mid.0.temporal_attention.proj_out.kernel"),
        ("renamed", {UNET + key: None, UNET + key + "s": state[UNET + key]}, "no parameter for key mid.0.temporal_att"),
        ("shaped", {UNET + key: np.zeros((3, 64), "f")}, r"proj_out.* has shape \(3, 64\)"),
        ("headless", {UNET + query: np.zeros((4, 64), "f")}, "diffusion_model.* are not VideoCrafter's"),
        ("scaleless", {"scale_arr": np.zeros(0, "f")}, "its keys scale_arr are not VideoCrafter's: get it again"),
        ("dynamic", wide, "sees 8 channels and makes 4: .* such as DynamiCrafter, which is not read"),
        ("blind", {k: None for k in state if k.startswith(RESAMPLER)}, r"VideoCrafter's \('latents' is missing\): get"),
        ("sightless", {k: None for k in state if k.startswith(ENCODER)}, r"'conv1.weight' is missing\): get it again"),
        ("wordless", {words: None}, r"text_encoder are missing or .*: is it a whole checkpoint of a video model\?"),
    ):
        found = {k: v for k, v in {**state, **change}.items() if v is not None}
        (tmp_path / name).mkdir()
        save_file(found, tmp_path / name / "model.safetensors")
        copytree(path.parent / "tokenizer", tmp_path / name / "tokenizer")
        with pytest.raises(InputError, match=says) as raised:
            pretrained.load(tmp_path / name / "model.safetensors")
        assert "\n" not in str(raised.value)


def test_a_run_goes_out_as_the_file_it_came_from(env, tmp_path):
    """By the programs, on clips of 8 frames per second, which the model is told: layers over time have moved, all else
    is as it was, bit for bit; and the file samples as the run does."""
    path, _ = write(tmp_path / "model", "512-v2")
    workdir = tune("videocrafter.py", path, tmp_path / "run", env, prompt="the fox")
    assert Run(workdir).stage().start(False)[1].fps.rate == 8.0
    run("export", f"--workdir={workdir}", "--format=single_file", f"--out={tmp_path / 'out'}", env=env)
    before, after = load_file(path), load_file(tmp_path / "out" / path.name)
    over_time = r"\.init_attn\.|\.temopral_conv\.|(middle_block|put_blocks\.\d+)\.2\.(norm|proj_|transformer)"
    moved = {key for key in after if not np.array_equal(before[key], after[key])}
    assert before.keys() == after.keys() and moved == {key for key in before if re.search(over_time, key)}
    how = ("--prompt=the cat", "--fps=9", "--eta=0")
    ours = latents_of(f"--workdir={workdir}", tmp_path / "ours", env, *how)
    theirs = latents_of(f"--pretrained={tmp_path / 'out' / path.name}", tmp_path / "theirs", env, *how)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def test_a_model_of_a_picture_is_tuned_without_what_encodes_clips_once(files, tmp_path):
    made = config("videocrafter:temporal") | dict(pretrained=str(files["i2v"][0]), prompt="the fox")
    made["data"] |= dict(path=str(CLIPS), size=(16, 16), frames=2)
    for option, says in ((dict(encode_once=True), "sees the first"), (dict(prior=dict(prompt="a fox")), "prior wants")):
        with pytest.raises(InputError, match=says):
            build(made | dict(finetune=made["finetune"] | option), "tune", tmp_path)


def test_adapters_go_out_and_come_back(files, tmp_path):
    """Under the names of ModelScope's layers, in diffusers' layout and kohya's."""
    path, _ = files["512-v1"]
    model, tune = pretrained.load(path).model, strategy("lora", rank=2)
    tune.surgery(model, Keys(0))
    tensors = lora_tensors(model)
    assert any("stem.temporal_in" in name for name in tensors)
    for kohya, file in ((False, lora.FILE), (True, lora.KOHYA_FILE)):
        pretrained.save_adapters(model, tensors, path, tmp_path, kohya=kohya)
        back = lora.load(tmp_path / file, 1)
        for name in lora.layers_of(tensors):
            np.testing.assert_array_equal(back[f"{name}.lora_down"], tensors[f"{name}.lora_down"])
        assert lora.layers_of(back) and set(lora.layers_of(back)) == set(lora.layers_of(tensors))


def tokenizer_ids(path, text):
    """As OpenCLIP's tokenizer: zeros after the end."""
    words = transformers.CLIPTokenizer.from_pretrained(path.parent / "tokenizer")(text).input_ids
    return np.pad(words, (0, LENGTH - len(words)))
