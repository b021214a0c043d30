"""LVDM's files against torch modules of their layout (lvdm_layout.py), on random weights: in, computed, out again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from as_users import latents_of, run, tune  # noqa: E402
from flax import nnx  # noqa: E402
from parity import lvdm_layout as layout  # noqa: E402
from parity.test_pipeline import LENGTH, VOCABULARY, error, refill, tokenizer  # noqa: E402
from parity.test_single_file import as_convolution, ldm_autoencoder  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from test_configs import config  # noqa: E402

from vidjax.errors import InputError  # noqa: E402
from vidjax.generation.options import CAPACITY  # noqa: E402
from vidjax.generation.pretrained import load_generator  # noqa: E402
from vidjax.models.keys import Keys, OneKey  # noqa: E402
from vidjax.models.lora import lora_tensors  # noqa: E402
from vidjax.models.parameters import parameters  # noqa: E402
from vidjax.models.unet import UNet  # noqa: E402
from vidjax.recipes.build import build  # noqa: E402
from vidjax.training.strategies import strategy  # noqa: E402
from vidjax.weights import convert, lora, lvdm, pretrained  # noqa: E402
from vidjax.weights.video_file import Entries  # noqa: E402

FRAMES, REACH = 3, 4
PLAIN = dict(width=32, mult=(1, 2), n=1, attends=(False, True), heads=2, reach=REACH)
TEXTUAL = dict(PLAIN, tokens_dim=128, scale_shift=False)
YAML = """
model:
  target: lvdm.models.ddpm3d.LatentDiffusion
  params:
    linear_start: 0.0015
    linear_end: 0.0155
    timesteps: 1000
    image_size: 4
    scale_factor: 0.5
    shift_factor: 0.25
"""


def state_of(module, prefix):
    return {f"{prefix}.{key}": value.numpy().copy() for key, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(file, U-Net, autoencoder): a training run's file with averages, whose trained weights are others."""
    folder = tmp_path_factory.mktemp("lvdm")
    unet, vae = refill(layout.UNet(**PLAIN)), refill(layout.Autoencoder())
    averages = state_of(unet, "diffusion_model")
    state = {f"model_ema.{key.replace('.', '')}": value for key, value in averages.items()}
    state |= {f"model.{key}": value + 1 for key, value in averages.items()}
    state |= {**state_of(vae, "first_stage_model"), "betas": np.ones(1000, "f"), "model_ema.decay": np.ones((), "f")}
    save_file(state, folder / "sky.safetensors")
    (folder / "sky.yaml").write_text(YAML)
    return folder / "sky.safetensors", unet, vae


@pytest.fixture(scope="module")
def textual(tmp_path_factory):
    """(file, U-Net, the folder's text encoder): without averages; the autoencoder is Stable Diffusion's."""
    folder = tmp_path_factory.mktemp("lvdm_text")
    unet = refill(layout.UNet(**TEXTUAL))
    levels = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    vae = refill(diffusers.AutoencoderKL(block_out_channels=(32, 64), layers_per_block=2, **levels))
    size = dict(hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    places = dict(vocab_size=len(VOCABULARY), max_position_embeddings=LENGTH)
    text = refill(transformers.CLIPTextModel(transformers.CLIPTextConfig(**size, **places)))
    tokenizer(folder / "tokenizer", "sd1").save_pretrained(folder / "tokenizer")
    state = state_of(unet, "model.diffusion_model")
    for key, value in vae.state_dict().items():
        own = f"first_stage_model.{ldm_autoencoder(key, 2)}"
        state[own] = as_convolution(own, value.numpy())
    for key, value in text.state_dict().items():
        inner = key if key.startswith("text_model.") else f"text_model.{key}"
        state[f"cond_stage_model.transformer.{inner}"] = value.numpy().copy()
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, folder / "t2v.safetensors")
    return folder / "t2v.safetensors", unet


def compare(model, reference, tokens=None, channels=4, vector=None):
    """Forward within 1e-5, and of every parameter the gradient within 1e-4."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, FRAMES, 4, 6, channels), dtype="f")
    weight, t = random.standard_normal((*x.shape[:-1], 4), dtype="f"), np.array([3, 741])
    torch_of = lambda a: torch.from_numpy(np.moveaxis(a, -1, 1).copy())
    extra = {} if tokens is None else {"tokens": torch.from_numpy(tokens)}
    extra |= {} if vector is None else {"levels": torch.from_numpy(vector[:, 0].astype(int))}
    reference.zero_grad()
    out = reference(torch_of(x), torch.from_numpy(t), **extra)
    (out * torch_of(weight)).sum().backward()
    graph, state = nnx.split(model)
    own = [None if a is None else jnp.asarray(a) for a in (tokens, vector)]

    def loss(state):
        got = nnx.merge(graph, state)(jnp.asarray(x), jnp.broadcast_to(t[:, None], (2, FRAMES)), *own)
        return (got * weight).sum(), got

    (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    assert error(np.moveaxis(got, -1, 1), out.detach().numpy()) <= 1e-5
    return {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(grads)}


def check_gradients(grads, reference, file):
    """In the file's own layout: entries part and flip gradients as they do weights."""
    tensors = {f"model.diffusion_model.{key}": value.grad.numpy() for key, value in reference.named_parameters()}
    entries = {name: e._replace(key=lvdm.UNET + own) for name, (own, e) in own_keys(file).items()}
    expected = convert.fit({k: v.shape for k, v in grads.items()}, Entries(tensors, entries), [])
    worst = {k: error(grads[k], v) for k, v in expected.items() if np.abs(v).max() > 1e-3}
    assert max(worst.values()) <= 1e-4, max(worst.items(), key=lambda item: item[1])
    assert len(worst) > 0.8 * len(expected)


def own_keys(file):
    """Parameter path -> (the U-Net's own key, entry), also where the entry is an average."""
    short = {f"model_ema.{('diffusion_model.' + key).replace('.', '')}": key for key in file.shapes}
    find = lambda key: short.get(key, key.removeprefix(lvdm.UNET))
    return {name: (find(entry.key), entry) for name, entry in file.unet_entries().items()}


def test_the_unconditional_unet_is_the_original_s_with_its_averages(plain):
    path, unet, _ = plain
    loaded = pretrained.load(path)
    config = loaded.model.unet.config
    assert (config.channels, config.attention_levels, config.heads) == ((32, 64), (False, True), (2, 2))
    assert config.transposed and config.scale_shift and config.reach == REACH
    check_gradients(compare(loaded.model.unet, unet), unet, lvdm.LvdmFile(path))
    assert (loaded.frames, loaded.size, loaded.tokenize) == (4 * REACH, (32, 32), None)


def test_the_unet_of_text_is_the_original_s(textual):
    path, unet = textual
    loaded = pretrained.load(path)
    tokens = np.random.default_rng(2).standard_normal((2, 5, 128), dtype="f")
    check_gradients(compare(loaded.model.unet, unet, tokens), unet, lvdm.LvdmFile(path))
    assert (loaded.model.codec.scale, loaded.model.codec.shift) == (0.18215, 0)
    np.testing.assert_allclose(
        loaded.schedule.alpha(999) ** 2, np.prod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2), rtol=1e-3
    )


def test_the_autoencoder_of_clips_is_the_original_s(plain):
    path, _, reference = plain
    codec, random = pretrained.load(path).model.codec, np.random.default_rng(1)
    x = random.uniform(-1, 1, (1, 8, 16, 24, 3)).astype("f")
    with torch.no_grad():
        moments = reference.encode(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
        mean = moments[:, :4]
        decoded = reference.decode(mean)
    got = jax.jit(codec.encode)(x)
    expected = 0.5 * (np.moveaxis(mean.numpy(), 1, -1) + 0.25)  # scale and shift of the yaml
    assert got.shape == (1, 2, 2, 3, 4) and error(got, expected) <= 1e-5
    assert error(jax.jit(codec.decode)(got), np.moveaxis(decoded.numpy(), 1, -1)) <= 1e-5


@pytest.mark.parametrize("kind", ["plain", "textual"])
def test_out_again_bit_equal(kind, request, tmp_path):
    path = request.getfixturevalue(kind)[0]
    model = pretrained.load(path).model
    pretrained.save(model, path, tmp_path / "out")
    before, after = load_file(path), load_file(tmp_path / "out" / path.name)
    assert before.keys() == after.keys()
    averaged = lambda key: f"model_ema.{key.removeprefix('model.').replace('.', '')}"
    for key, value in after.items():
        expected = before[averaged(key)] if averaged(key) in before else before[key]
        np.testing.assert_array_equal(value, expected, err_msg=key)
    assert (tmp_path / "out" / "sky.yaml").is_file() == (kind == "plain")


def test_known_frames_noise_levels_are_a_table(plain):
    """The U-Net that predicts frames: a mask as fifth channel, and a row of 251 added to the time embedding. It samples
    beside a known first latent, that it is shown under the noise of level 100, and away from what it says of none."""
    path, *_ = plain
    unet = refill(layout.UNet(**PLAIN, channels=5, levels=251))
    state = {**load_file(path), **state_of(unet, "model.diffusion_model")}
    state = {key: value for key, value in state.items() if not key.startswith("model_ema.")}
    file = path.with_name("pred.safetensors")
    save_file(state, file)
    path.with_name("pred.yaml").write_text(YAML)
    generator = load_generator(file)
    config = generator.model.unet.config
    assert (config.in_channels, config.vector_levels, generator.model.masked) == (5, 251, True)
    compare(generator.model.unet, unet, channels=5, vector=np.array([[7], [250]], "f"))

    shape, steps, level, weight = (1, REACH, 4, 4, 4), 10, 100, 1.1
    noise, latents = (np.random.default_rng(i).standard_normal(shape, dtype="f") for i in (4, 5))
    first = np.arange(REACH) == 0
    got = generator.latents([""], noise=noise, known=(latents, first), num_steps=steps)
    np.testing.assert_array_equal(got[:, 0], latents[:, 0])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), CAPACITY)  # of what it is shown under
    torch_of = lambda a: torch.from_numpy(np.moveaxis(np.array(a), -1, 1).copy())
    x, given, under = map(torch_of, (noise, latents, jax.random.normal(key, shape)))
    mask = torch.from_numpy(first.astype("f"))[None, None, :, None, None].expand(1, 1, REACH, 4, 4)
    alphas = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0155**0.5, 1000, dtype=torch.float64) ** 2, 0).float()
    parts = lambda t: (alphas[t].sqrt(), (1 - alphas[t]).sqrt())
    shown = parts(level)[0] * given + parts(level)[1] * under
    for t, before in [(t, max(t - 100, 0)) for t in range(901, 0, -100)]:
        with torch.no_grad():
            say = lambda x, mask, told, t=t: unet(
                torch.cat([x, mask], 1), torch.tensor([t]), levels=torch.tensor([told])
            )
            own, free = say(torch.where(mask > 0, shown, x), mask, level), say(x, 0 * mask, 0)
        eps = torch.where(mask > 0, free, free + weight * (own - free))
        x = parts(before)[0] * (x - parts(t)[1] * eps) / parts(t)[0] + parts(before)[1] * eps
    assert error(got[:, 1:], np.moveaxis(x.numpy(), 1, -1)[:, 1:]) <= 1e-3


def test_as_a_user_tunes_and_samples_it(plain, env, tmp_path):
    """By the programs, without a text: layers over time have moved, the file that comes out samples as the run does."""
    path, how = plain[0], ("--frames=8", "--guidance_scale=1", "--eta=0")
    made = config("videocrafter:temporal") | dict(pretrained=str(path), prompt="the fox")
    with pytest.raises(InputError, match=r"config.prompt: .*sky.safetensors reads no text; leave it out"):
        build(made, "tune", tmp_path)
    given = dict(data__frames=8, sample__guidance_scale=1.0)
    workdir = tune("videocrafter.py", path, tmp_path / "run", env, **given)
    run("export", f"--workdir={workdir}", "--format=single_file", f"--out={tmp_path / 'out'}", env=env)
    file = tmp_path / "out" / path.name
    before, after = (parameters(pretrained.load(each).model) for each in (path, file))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved and all("temp" in name for name in moved)
    ours = latents_of(f"--workdir={workdir}", tmp_path / "ours", env, *how)
    theirs = latents_of(f"--pretrained={file}", tmp_path / "theirs", env, *how)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def test_adapters_go_out_and_come_back(textual, tmp_path):
    """Those of the model of text, in diffusers' layout and in kohya's."""
    path, _ = textual
    model, tune_lora = pretrained.load(path, weights=False).model, strategy("lora", rank=2)
    tune_lora.surgery(model, Keys(0))
    tensors = lora_tensors(model)
    halves = {name for name in tensors if name.endswith(("lora_down", "lora_up"))}
    for kohya, file in ((False, lora.FILE), (True, lora.KOHYA_FILE)):
        pretrained.save_adapters(model, tensors, path, tmp_path, kohya=kohya)
        back = lora.load(tmp_path / file, 1)
        assert halves and {name for name in back if name.endswith(("lora_down", "lora_up"))} == halves
        for name in halves:
            np.testing.assert_array_equal(back[name], tensors[name])


def test_at_full_size_the_counts_are_the_published_ones():
    sky = dict(width=256, mult=(1, 2, 3, 4), n=3, attends=(False, True, True, True), heads=4, reach=4)
    text = dict(width=320, mult=(1, 2, 4, 4), n=2, attends=(True, True, True, False), heads=8, reach=16)
    text |= dict(tokens_dim=768, scale_shift=False)
    for given, count, keys in ((sky, 548_904_580, 668), (text, 958_924_964, None)):
        with torch.device("meta"):
            reference = layout.UNet(**given)
        state = {
            f"model.diffusion_model.{k}": np.broadcast_to(np.uint8(0), tuple(v.shape))
            for k, v in reference.state_dict().items()
        }
        assert keys in (None, len(state))
        file = object.__new__(lvdm.LvdmFile)
        file.__dict__.update(all=type("All", (), {"places": state}))
        model = nnx.eval_shape(lambda file=file: UNet(file.unet(), rngs=OneKey()))
        leaves = {path: leaf.shape for path, leaf in convert.parameters(model).items()}
        fitted = convert.fit(leaves, Entries(state, file.unet_entries()), [])
        assert fitted.keys() == leaves.keys()
        assert sum(int(np.prod(value.shape)) for value in fitted.values()) == count


def test_it_samples(plain):
    generator = load_generator(plain[0])
    assert generator.size == (4 * REACH, 32, 32)
    videos = generator([""], num_steps=2, guidance_scale=1.0, frames=8)
    assert videos.shape == (1, 8, 32, 32, 3) and videos.std() > 0


def test_files_that_do_not_fit_are_refused_in_one_line(plain, tmp_path):
    path, *_ = plain
    state = load_file(path)
    unet, ema = "model.diffusion_model.", "model_ema.diffusion_model"
    with_yaml = lambda name: (tmp_path / f"{name}.yaml").write_text(YAML)
    key = "middle_block.1.proj_out_t.weight"
    renamed = {k.replace("proj_out_t", "proj_out_u") if k.endswith(key) else k: v for k, v in state.items()}
    renamed = {k: v for k, v in renamed.items() if not k.startswith(ema)}
    shaped = {**state, f"{ema}{key.replace('.', '')}": np.zeros((3, 64, 1), "f")}
    alone = {k: v for k, v in state.items() if k.startswith(unet)}
    for name, given, says in (
        ("renamed", renamed, "no key for parameter mid.0.attention.layer.attn_temp.to_out.kernel"),
        ("shaped", shaped, r"mid.0.attention.layer.attn_temp.to_out.*has shape \(3, 64, 1\)"),
        ("alone", alone, r"has no keys first_stage_model\.\*: take the file of the whole model"),
    ):
        save_file(given, tmp_path / f"{name}.safetensors")
        with_yaml(name)
        with pytest.raises(InputError, match=says) as raised:
            pretrained.load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(raised.value)
    save_file(state, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match=r"does not say its scale_factor .*: put the yaml of its training beside it"):
        pretrained.load(tmp_path / "bare.safetensors")
    (tmp_path / "bare.json").write_text('{"scale_factor": "a", "shift_factor": 1}')
    with pytest.raises(InputError, match=r"does not say its scale_factor \('a' is given\)"):
        pretrained.load(tmp_path / "bare.safetensors")
    (tmp_path / "bare.json").write_text('{"scale_factor": 2, "shift_factor": 1}')
    assert pretrained.load(tmp_path / "bare.safetensors", weights=False).model.codec.scale == 2
    with pytest.raises(InputError, match="inflate='tuned' is of other models"):
        pretrained.load(path, inflate="tuned")
