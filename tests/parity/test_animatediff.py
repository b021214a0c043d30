"""AnimateDiff against diffusers, and its own code's layout: in, sampled and out again, nothing at zero."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from flax import nnx  # noqa: E402
from parity.test_pipeline import PROMPTS, autoencoder, error, refill, text_encoder, tokenizer, unet  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from vidjax.errors import InputError  # noqa: E402
from vidjax.generation.adapters import merge_lora_files  # noqa: E402
from vidjax.generation.pretrained import load_generator  # noqa: E402
from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.models.unet import UNet  # noqa: E402
from vidjax.weights import animatediff, convert, pretrained  # noqa: E402
from vidjax.weights.diffusers import ANIMATEDIFF  # noqa: E402
from vidjax.weights.diffusers import unet as skeleton  # noqa: E402

FRAMES = 3
LINEAR = dict(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False)
ADAPTER = dict(
    block_out_channels=(16, 32), motion_layers_per_block=1, motion_num_attention_heads=8, motion_norm_num_groups=8
)


def adapter(**options):
    return refill(diffusers.MotionAdapter(**{**ADAPTER, **options}))


def original(module):
    """The state of a MotionAdapter under the keys of AnimateDiff's code, written out from its module names."""
    ends = {
        "attn1.": "attention_blocks.0.",
        "attn2.": "attention_blocks.1.",
        "norm1.": "norms.0.",
        "norm2.": "norms.1.",
        "norm3.": "ff_norm.",
        "ff.": "ff.",
    }
    out = {}
    for key, value in module.state_dict().items():
        head, number, tail = key.partition(".motion_modules.")
        place, _, rest = tail.partition(".")
        rest = rest.replace("pos_embed.pe", "attn1.pos_encoder.pe")
        for new, old in ends.items():
            rest = rest.replace(f"transformer_blocks.0.{new}", f"transformer_blocks.0.{old}")
        out[f"{head}{number}{place}.temporal_transformer.{rest}"] = value.numpy().copy()
        if rest.endswith("pos_encoder.pe"):
            second = rest.replace("attention_blocks.0", "attention_blocks.1")
            out[f"{head}{number}{place}.temporal_transformer.{second}"] = value.numpy().copy()
    return out


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A Stable Diffusion, an adapter for it, and the pipeline of both, as diffusers saves them."""
    folder = tmp_path_factory.mktemp("animatediff")
    words = tokenizer(folder / "vocabulary", "sd1")
    parts = dict(vae=autoencoder(), text_encoder=text_encoder("sd1"), tokenizer=words)
    image, motion = unet("sd1"), adapter()
    base = diffusers.StableDiffusionPipeline(
        **parts,
        unet=image,
        scheduler=diffusers.DDIMScheduler(**{**LINEAR, "beta_schedule": "scaled_linear"}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    base.save_pretrained(folder / "base")
    motion.save_pretrained(folder / "adapter")
    pipe = diffusers.AnimateDiffPipeline(
        **parts, unet=image, motion_adapter=motion, scheduler=diffusers.DDIMScheduler(**LINEAR)
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "pipeline")
    save_file(original(motion), folder / "mm_v2.safetensors")
    return folder, pipe


@pytest.fixture(scope="module")
def generator(saved):
    return load_generator(saved[0] / "pipeline")


def noise_like(frames=FRAMES, seed=0):
    return np.random.default_rng(seed).standard_normal((2, frames, 8, 8, 4), dtype=np.float32)


def theirs(pipe, noise, steps=10, output="latent", scale=7.5):
    out = pipe(
        PROMPTS,
        num_frames=noise.shape[1],
        num_inference_steps=steps,
        latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()),
        output_type=output,
        guidance_scale=scale,
    ).frames
    return np.asarray(out) if output == "np" else np.moveaxis(out.numpy(), 1, -1)


def test_whole_pipelines_agree(saved, generator):
    _, pipe = saved
    assert generator.size == (16, 16, 16)  # frames: as trained
    noise = noise_like()
    ask = lambda made: made.latents(PROMPTS, frames=FRAMES, noise=noise, num_steps=10)
    latents, expected = ask(generator), theirs(pipe, noise)
    assert error(latents, expected) <= 1e-3
    pixels = theirs(pipe, noise, output="np")
    assert np.abs(generator.decode(latents) / 255 - pixels).max() <= 1 / 255
    print("pipeline", error(latents, expected))


def test_an_adapter_on_its_base_is_the_pipeline(saved, generator):
    """The same network and weights, and AnimateDiff's betas in place of the base's."""
    folder, _ = saved
    onto = load_generator(folder / "base", motion_adapter=folder / "adapter")
    assert onto.size == generator.size and onto.model.unet.config == generator.model.unet.config
    assert all(np.array_equal(onto.params[path], value) for path, value in generator.params.items())
    times = np.arange(1000)
    np.testing.assert_array_equal(*(each.schedule.alpha(times) for each in (onto, generator)))
    assert np.abs(load_generator(folder / "base").schedule.alpha(times) - onto.schedule.alpha(times)).max() > 0.01


def test_gradients_agree(saved, generator):
    """Of every parameter of the U-Net, by name, within 1e-4 of the largest of its tensor."""
    reference = saved[1].unet
    random = np.random.default_rng(1)
    x, tokens = random.standard_normal((2, FRAMES, 4, 6, 4), "f"), random.standard_normal((2, 5, 24), "f")
    weight = random.standard_normal(x.shape).astype("f")
    t = np.array([3, 741])
    video, of = (torch.from_numpy(np.moveaxis(each, -1, 1).copy()) for each in (x, weight))
    context = torch.from_numpy(tokens).repeat_interleave(FRAMES, 0)
    reference.zero_grad()
    out = reference(video, torch.from_numpy(t), context).sample
    (out * of).sum().backward()
    graph, state = nnx.split(generator.model.unet)
    times = jnp.broadcast_to(t[:, None], (2, FRAMES))

    def loss(state):
        out = nnx.merge(graph, state)(jnp.asarray(x), times, jnp.asarray(tokens))
        return (out * weight).sum(), out

    (_, ours), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    assert error(np.moveaxis(ours, -1, 1), out.detach().numpy()) <= 1e-5
    found = {".".join(map(str, path)): value for path, value in nnx.to_flat_state(grads)}
    shapes = {path: value.shape for path, value in found.items()}
    expected = {key: value.grad.numpy() for key, value in reference.named_parameters()}
    expected = convert.fit(shapes, expected, [*ANIMATEDIFF, *skeleton(1)])
    worst = {path: error(found[path][...], value) for path, value in expected.items() if np.abs(value).max() > 1e-6}
    assert max(worst.values()) <= 1e-4, max(worst.items(), key=lambda item: item[1])
    assert len(worst) > 0.9 * len(expected)
    reference.zero_grad()


def over_frames(network):
    """Their network with the numerics of AnimateDiff's code: a motion module's norm sees each frame."""

    class PerFrame(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):  # [b, c, t, h, w]
            b, c, t, h, w = x.shape
            return self.norm(x.transpose(1, 2).reshape(b * t, c, h, w)).reshape(b, t, c, h, w).transpose(1, 2)

    for name, module in network.named_modules():
        if name.split(".")[-2:-1] == ["motion_modules"]:
            module.norm = PerFrame(module.norm)
    return network


def test_a_file_of_their_own_code_computes_as_their_own_code(saved):
    """v2 by its middle module: norms of motion modules per frame; v1, 24 frames long, those of residual blocks over
    the clip; v3 as v2 without the middle."""
    folder, pipe = saved
    loaded = pretrained.load(folder / "base", motion_adapter=folder / "mm_v2.safetensors")
    unet_config = loaded.model.unet.config
    assert (unet_config.norm_over, unet_config.after_attention.norm_over) == ("frame", "frame")
    assert unet_config.after_attention.mid and unet_config.after_attention.longest == 32
    random = np.random.default_rng(1)
    x, tokens = random.standard_normal((1, FRAMES, 8, 8, 4), "f"), random.standard_normal((1, 5, 24), "f")
    reference = diffusers.UNetMotionModel.from_unet2d(
        diffusers.UNet2DConditionModel.from_pretrained(folder / "base", subfolder="unet"), pipe.motion_adapter
    ).eval()
    ask = lambda: reference(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()), 500, torch.from_numpy(tokens).repeat_interleave(FRAMES, 0)
    ).sample.detach()
    over_clip = np.moveaxis(ask().numpy(), 1, -1)
    over_frames(reference)
    got = jax.jit(loaded.model.unet)(x, jnp.full((1, FRAMES), 500.0), tokens)
    assert error(got, np.moveaxis(ask().numpy(), 1, -1)) <= 1e-5
    assert error(got, over_clip) > 1e-3
    for name, longest, over in (("v1", 24, "clip"), ("v3", 32, "frame")):
        file = folder / f"{name}.safetensors"
        save_file(original(adapter(use_motion_mid_block=False, motion_max_seq_length=longest)), file)
        made = pretrained.load(folder / "base", motion_adapter=file, weights=False).model.unet.config
        assert (made.norm_over, made.after_attention.longest, made.after_attention.mid) == (over, longest, False)
        assert made.after_attention.norm_over == "frame"


@pytest.mark.parametrize("source", ["pipeline", "adapter", "mm_v2.safetensors"])
def test_out_again_bit_equal_and_diffusers_loads_it(saved, source, tmp_path):
    folder, pipe = saved
    given = (folder / "pipeline", None) if source == "pipeline" else (folder / "base", folder / source)
    pretrained.save(
        pretrained.load(given[0], motion_adapter=given[1]).model, given[0], tmp_path / "out", False, given[1]
    )
    again = diffusers.AnimateDiffPipeline.from_pretrained(tmp_path / "out")
    for part in ("unet", "vae", "text_encoder", "motion_adapter"):
        before, after = (getattr(p, part).state_dict() for p in (pipe, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), part
        if part in ("unet", "motion_adapter"):
            (file,) = (tmp_path / "out" / part).glob("*.safetensors")
            assert load_file(file).keys() == before.keys()
    # And in again, with the norms that its layout had.
    first = pretrained.load(given[0], motion_adapter=given[1], weights=False).model.unet.config
    assert pretrained.load(tmp_path / "out", weights=False).model.unet.config == first


def test_motion_modules_alone_out_again(saved, tmp_path):
    folder, pipe = saved
    model = pretrained.load(folder / "base", motion_adapter=folder / "adapter").model
    pretrained.save_motion_adapter(model, folder / "base", tmp_path / "out", folder / "adapter")
    again = diffusers.MotionAdapter.from_pretrained(tmp_path / "out")
    before, after = pipe.motion_adapter.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(InputError, match="has no motion modules"):
        pretrained.save_motion_adapter(pretrained.load(folder / "base").model, folder / "base", tmp_path / "none")


@pytest.mark.parametrize("layout", ["original", "old", "peft"])
def test_a_motion_lora_of_each_layout_has_its_strength(saved, generator, layout, tmp_path):
    """W + strength up down in diffusers' network; the original's keys have no `unet.` and its own names inside."""
    folder, _ = saved
    network = diffusers.UNetMotionModel.from_pretrained(folder / "pipeline", subfolder="unet")
    random, tensors = np.random.default_rng(3), {}
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for key in [k for k in weights if "motion_modules" in k and k.endswith((".to_q.weight", ".to_out.0.weight"))]:
            out, into = weights[key].shape
            up, down = 0.3 * random.standard_normal((out, 2), "f"), random.standard_normal((2, into), "f")
            weights[key] += 0.7 * torch.from_numpy(up @ down)
            module = key.removesuffix(".weight")
            parent, name = module.replace(".to_out.0", ".to_out").rsplit(".", 1)
            if layout == "original":
                parent = parent.replace(".transformer_blocks", ".temporal_transformer.transformer_blocks")
                parent = parent.replace(".attn1", ".attention_blocks.0").replace(".attn2", ".attention_blocks.1")
            if layout == "peft":
                ends = {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up}
            else:
                head = "" if layout == "original" else "unet."
                ends = {
                    f"{head}{parent}.processor.{name}_lora.{end}.weight": v for end, v in (("down", down), ("up", up))
                }
            tensors |= ends
    save_file(tensors, tmp_path / "lora.safetensors")
    params = merge_lora_files(generator, [f"{tmp_path / 'lora.safetensors'}:0.7"])
    expected = convert.fit(
        {path.removeprefix("unet."): value.shape for path, value in params.items() if path.startswith("unet.")},
        {key: value.detach().numpy() for key, value in weights.items()},
        [*ANIMATEDIFF, *skeleton(1)],
    )
    for path, value in expected.items():
        np.testing.assert_allclose(params[f"unet.{path}"], value, atol=1e-6)


def test_at_full_size_every_key_is_read_and_the_counts_are_the_published_ones():
    for mid, count, own in ((False, 1_276_658_564, 417_137_600), (True, 1_312_730_244, 453_209_280)):
        with torch.device("meta"):
            reference = diffusers.UNetMotionModel(cross_attention_dim=768, use_motion_mid_block=mid)
            alone = diffusers.MotionAdapter(use_motion_mid_block=mid)
        config = json.loads(json.dumps({**reference.config, "_class_name": "UNetMotionModel"}))
        ours, rules = animatediff.read_unet(config)
        model = nnx.eval_shape(lambda ours=ours: UNet(ours, rngs=OneKey()))
        shapes = {path: leaf.shape for path, leaf in convert.parameters(model).items()}
        tensors = {key: np.broadcast_to(np.uint8(0), tuple(v.shape)) for key, v in reference.state_dict().items()}
        fitted = convert.fit(shapes, tensors, [*rules, *skeleton(2)], animatediff.BUFFERS)
        assert sum(int(np.prod(value.shape)) for value in fitted.values()) == count
        wanted = {
            f"{module}.{end}": shape
            for module, dim in animatediff.modules((320, 640, 1280, 1280), 2, mid)
            for end, shape in animatediff.shapes_of(dim).items()
        }
        assert wanted == {key: tuple(v.shape) for key, v in alone.state_dict().items() if "pos_embed" not in key}
        assert sum(int(np.prod(shape)) for shape in wanted.values()) == own


def test_an_adapter_that_does_not_fit_is_refused_in_one_line(saved, tmp_path):
    folder, _ = saved
    load = lambda path, base="base": pretrained.load(folder / base, motion_adapter=path)
    tensors = original(adapter())
    key = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    renamed = {("x" + name if name == key else name): value for name, value in tensors.items()}
    shaped = {**tensors, key: tensors[key][:, :3].copy()}
    other = original(adapter(block_out_channels=(16, 16)))
    lora = {"unet.down_blocks.0.motion_modules.0.proj_in.lora_A.weight": np.ones((1, 2), "f")}
    for name, given, says in (
        ("renamed", renamed, "has no down_blocks.0.motion_modules.0.proj_in.weight: get it again"),
        ("shaped", shaped, r"down_blocks.0.motion_modules.0.proj_in.weight has shape \(16, 3\), this base wants"),
        ("other", other, r"is for features \(16, 16\), the U-Net in .*base has \(16, 32\): it belongs to another"),
        ("lora", lora, "has no motion modules in the layout of AnimateDiff's code but unet.down_blocks"),
    ):
        save_file(given, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match=says) as raised:
            load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"there is no motion adapter .*nothing; name a folder"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"config.json does not exist; name a folder of diffusers' MotionAdapter"):
        load(folder / "base")
    with pytest.raises(InputError, match=r"goes onto Stable Diffusion 1, .*pipeline is a UNetMotionModel"):
        load(folder / "adapter", base="pipeline")
    with pytest.raises(InputError, match=r"has no unet/ but config.json, .* of a MotionAdapter; .*--motion_adapter"):
        pretrained.load(folder / "adapter")
    broken = shutil.copytree(folder / "adapter", tmp_path / "broken")
    next(broken.glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="broken has no weights"):
        load(broken)


def test_more_frames_than_it_learned_are_refused(generator):
    with pytest.raises(InputError, match="33 frames are more than the 32 whose places"):
        generator.latents(["the cat"], frames=33, num_steps=1)
