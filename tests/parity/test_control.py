"""SparseCtrl and ControlNet against diffusers: each network with its gradients, and whole pipelines; in and out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from as_users import latents_of, picture_of  # noqa: E402
from flax import nnx  # noqa: E402
from parity.gradients import check_gradients  # noqa: E402
from parity.test_animatediff import FRAMES, LINEAR, adapter, noise_like  # noqa: E402
from parity.test_pipeline import PROMPTS, autoencoder, error, refill, text_encoder, tokenizer, unet  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from vidjax.errors import InputError  # noqa: E402
from vidjax.generation.pictures import fit_pictures, read_pictures  # noqa: E402
from vidjax.generation.pretrained import load_generator  # noqa: E402
from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.weights import convert, pretrained  # noqa: E402
from vidjax.weights.control import KEYS, RULES, read_control  # noqa: E402
from vidjax.weights.diffusers import ANIMATEDIFF, ANIMATEDIFF_KEYS, unet_keys  # noqa: E402
from vidjax.weights.diffusers import unet as skeleton  # noqa: E402

TOY = dict(block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=24, norm_num_groups=8)
SPARSE = dict(TOY, down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), motion_num_attention_heads=8)
WIDTHS = dict(conditioning_embedding_out_channels=(4, 8))  # the toy autoencoder halves once
KINDS = {
    "latents": lambda: diffusers.SparseControlNetModel(**SPARSE, conditioning_channels=4),
    "pixels": lambda: diffusers.SparseControlNetModel(
        **SPARSE, **WIDTHS, conditioning_channels=3, use_simplified_condition_embedding=False
    ),
    "dense": lambda: diffusers.ControlNetModel(
        **TOY, **WIDTHS, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D")
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(a folder with base, adapter and the three networks, the base's parts, the networks by name)."""
    path = tmp_path_factory.mktemp("control")
    words = tokenizer(path / "vocabulary", "sd1")
    parts = dict(vae=autoencoder(), text_encoder=text_encoder("sd1"), tokenizer=words, unet=unet("sd1"))
    diffusers.StableDiffusionPipeline(
        **parts,
        scheduler=diffusers.DDIMScheduler(**{**LINEAR, "beta_schedule": "scaled_linear"}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path / "base")
    parts["motion_adapter"] = adapter()
    parts["motion_adapter"].save_pretrained(path / "adapter")
    networks = {name: refill(make()) for name, make in KINDS.items()}
    for name, network in networks.items():
        network.save_pretrained(path / name)
    return path, parts, networks


def last(x):
    return np.moveaxis(x, 1, -1)


def first(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def call(kind, network, x, t, tokens, hint):
    """What theirs returns, each [b, t, h, w, c]; a ControlNet sees every frame as an example."""
    sizes = x.shape[:2]
    if kind == "dense":
        flat = lambda a: first(a.reshape(-1, *a.shape[2:]))
        often = lambda a: torch.from_numpy(a).repeat_interleave(sizes[1], 0)
        out = network(flat(x), often(t), often(tokens), flat(hint), return_dict=False)
    else:
        seen, mask = first(hint[..., :-1]), first(hint[..., -1:])
        context = torch.from_numpy(tokens).repeat_interleave(sizes[1], 0)
        out = network(first(x), torch.from_numpy(t), context, seen, conditioning_mask=mask, return_dict=False)
    return [torch.movedim(each, 1, -1).unflatten(0, sizes) for each in (*out[0], out[1])]


@pytest.mark.parametrize("kind", KINDS)
def test_networks_and_their_gradients(folder, kind):
    path, _, networks = folder
    random = np.random.default_rng(1)
    x, tokens = random.standard_normal((2, FRAMES, 8, 6, 4), "f"), random.standard_normal((2, 5, 24), "f")
    hint = random.standard_normal(
        {"latents": (2, FRAMES, 8, 6, 5), "pixels": (2, FRAMES, 16, 12, 4)}.get(kind, (2, FRAMES, 16, 12, 3)), "f"
    )
    t, network = np.array([3, 741]), networks[kind]
    network.zero_grad()
    expected = call(kind, network, x, t, tokens, hint)
    weights = [random.standard_normal(tuple(each.shape), "f") for each in expected]
    sum((each * torch.from_numpy(w)).sum() for each, w in zip(expected, weights)).backward()

    source = read_control(path / kind)
    ours = source.embedder(nnx.Rngs(0)).network
    source.load(ours)
    graph, state = nnx.split(ours)
    times = jnp.broadcast_to(t[:, None], (2, FRAMES))

    def loss(state):
        out = nnx.merge(graph, state)(jnp.asarray(x), times, jnp.asarray(tokens), jnp.asarray(hint))
        return sum((each * w).sum() for each, w in zip(out, weights, strict=True)), out

    (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    for each, wanted in zip(got, expected, strict=True):
        assert error(each, wanted.detach().numpy()) <= 1e-5
    found = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(grads)}
    theirs = {
        key: np.zeros(p.shape, "f") if p.grad is None else p.grad.numpy() for key, p in network.named_parameters()
    }
    theirs = convert.fit({p: v.shape for p, v in found.items()}, theirs, [*RULES, *ANIMATEDIFF, *skeleton(1)])
    check_gradients(found, theirs)
    network.zero_grad()


@pytest.mark.parametrize("kind, scale", [("latents", 1.0), ("pixels", 0.7)])
def test_whole_pipelines_agree(folder, kind, scale, monkeypatch):
    """Two pictures at the first and the last frame, two prompts, ten steps, with guidance."""
    path, parts, networks = folder
    kl = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(kl, "sample", lambda self, generator=None: self.mode())  # theirs draws a sample
    pipe = diffusers.AnimateDiffSparseControlNetPipeline(
        **parts, controlnet=networks[kind], scheduler=diffusers.DDIMScheduler(**LINEAR)
    )
    pipe.set_progress_bar_config(disable=True)
    noise, pictures = noise_like(), np.random.default_rng(2).integers(0, 256, (2, 16, 16, 3), np.uint8)
    expected = pipe(
        PROMPTS,
        num_frames=FRAMES,
        num_inference_steps=10,
        latents=first(noise),
        output_type="latent",
        guidance_scale=7.5,
        conditioning_frames=[Image.fromarray(each) for each in pictures],
        controlnet_frame_indices=[0, FRAMES - 1],
        controlnet_conditioning_scale=scale,
    ).frames
    generator = load_generator(path / "base", motion_adapter=path / "adapter", control=path / kind)
    how = dict(frames=FRAMES, noise=noise, num_steps=10, control_scale=scale, pictures=np.tile(pictures, (2, 1, 1, 1)))
    got = generator.latents(PROMPTS, picture_at=(0, -1), **how)
    assert error(got, last(expected.numpy())) <= 1e-3
    assert error(generator.latents(PROMPTS, picture_at=(0, 1), **how), got) > 1e-2


def test_a_controlnet_steers_every_frame(folder):
    """One picture is that of all frames: an image model's frames are what diffusers' pipeline makes of each."""
    path, parts, networks = folder
    parts = {name: part for name, part in parts.items() if name != "motion_adapter"}
    scheduler = diffusers.DDIMScheduler(**{**LINEAR, "beta_schedule": "scaled_linear"})
    rest = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=networks["dense"], scheduler=scheduler, **rest
    )
    pipe.set_progress_bar_config(disable=True)
    noise, picture = noise_like(2), np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8)
    expected = pipe(
        [PROMPTS[0]] * 2,
        image=[Image.fromarray(picture)] * 2,
        num_inference_steps=10,
        latents=first(noise[0]),
        output_type="latent",
        guidance_scale=7.5,
    ).images
    generator = load_generator(path / "base", control=path / "dense")
    how = dict(frames=2, noise=noise[:1], num_steps=10, guidance_scale=7.5, pictures=picture[None])
    assert error(generator.latents(PROMPTS[:1], **how)[0], last(expected.numpy())) <= 1e-3


def test_as_a_user_samples_them(folder, env, tmp_path):
    """A base, motion modules and SparseCtrl by three flags, two pictures; and a ControlNet on the base alone."""
    path, *_ = folder
    picture, base = picture_of(tmp_path), f"--pretrained={path / 'base'}"
    how = (f"--image={picture}", "--prompt=the cat", "--guidance_scale=2", "--seed=3")
    sparse = (f"--motion_adapter={path / 'adapter'}", f"--control={path / 'latents'}", f"--image={picture}")
    got = latents_of(base, tmp_path / "sparse", env, *how, *sparse, "--image_at=0,-1", "--frames=3")
    generator = load_generator(path / "base", motion_adapter=path / "adapter", control=path / "latents")
    pictures = fit_pictures(read_pictures([picture] * 2), (16, 16))
    more = dict(pictures=pictures, picture_at=(0, -1), frames=3, num_steps=2, guidance_scale=2.0, seed=3)
    assert error(got, generator.latents(["the cat"], **more)) <= 1e-5
    dense = latents_of(base, tmp_path / "dense", env, *how, f"--control={path / 'dense'}")
    assert dense.shape == (1, 2, 8, 8, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_out_again_bit_equal(folder, kind, tmp_path):
    path, *_ = folder
    model = pretrained.load(path / "base", control=path / kind).model
    with pytest.raises(InputError, match="control=None: the model is steered by a network; name its folder"):
        pretrained.save(model, path / "base", tmp_path / "out")
    with pytest.raises(InputError, match=r"a network steers the model, for which .* has no place"):
        pretrained.save_single_file(model, path / "base", tmp_path / "out")
    pretrained.save(model, path / "base", tmp_path / "out", control=path / kind)
    name = "diffusion_pytorch_model.safetensors"
    before, after = load_file(path / kind / name), load_file(tmp_path / "out" / "controlnet" / name)
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[key], value) for key, value in before.items())
    written = tmp_path / "out" / "controlnet" / "config.json"
    assert written.read_bytes() == (path / kind / "config.json").read_bytes()


def test_at_full_size_every_key_is_read_and_the_counts_are_the_published_ones(tmp_path):
    second = dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
    for name, options, count in (
        ("SparseControlNetModel", {}, 496_730_880),
        ("ControlNetModel", dict(cross_attention_dim=768), 361_279_120),
        ("ControlNetModel", second, 364_228_240),
    ):
        with torch.device("meta"):
            reference = getattr(diffusers, name)(**options)
        (tmp_path / "config.json").write_text(reference.to_json_string())
        source = read_control(tmp_path, weights=False)
        model = nnx.eval_shape(lambda source=source: source.embedder(OneKey())).network
        shapes = {path: leaf.shape for path, leaf in convert.parameters(model).items()}
        theirs = {key: tuple(value.shape) for key, value in reference.named_parameters()}
        tensors = {key: np.broadcast_to(np.uint8(0), shape) for key, shape in theirs.items()}
        fitted = convert.fit(shapes, tensors, [*RULES, *ANIMATEDIFF, *skeleton(2)])
        projections = "" if options.get("use_linear_projection") else r"|\.attentions\.\d+\.proj_(in|out)"
        pointwise = rf"(conv_shortcut|^controlnet_(down_blocks\.\d+|mid_block){projections})\.weight$"
        back = convert.unfit(fitted, [*unet_keys(2), *ANIMATEDIFF_KEYS, *KEYS], pointwise)
        assert {key: value.shape for key, value in back.items()} == theirs
        assert sum(int(np.prod(value.shape)) for value in fitted.values()) == count


def test_what_does_not_fit_is_refused_in_one_line(folder, tmp_path):
    path, *_ = folder
    load = lambda control: pretrained.load(path / "base", control=control)
    with pytest.raises(InputError, match="name a folder of diffusers' ControlNetModel or SparseControlNetModel"):
        load(tmp_path)
    with pytest.raises(InputError, match="_class_name"):
        load(path / "adapter")
    wrong = {**json.loads((path / "dense" / "config.json").read_text()), "block_out_channels": [16, 64]}
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    tensors = load_file(path / "dense" / "diffusion_pytorch_model.safetensors")
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match=r"is for a U-Net with channels=\(16, 64\), this one has \(16, 32\)"):
        load(tmp_path)
    (tmp_path / "config.json").write_text((path / "dense" / "config.json").read_text())
    tensors["controlnet_mid_blocks.weight"] = tensors.pop("controlnet_mid_block.weight")
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match=r"no key for parameter zero_mid\.kernel.*controlnet_mid_blocks") as said:
        load(tmp_path)
    assert "\n" not in str(said.value)
