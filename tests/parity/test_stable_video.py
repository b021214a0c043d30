"""Stable Video Diffusion against diffusers: each network, and the whole pipeline from a picture to frames."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from parity.gradients import check_gradients  # noqa: E402

from vidjax.models import picture  # noqa: E402
from vidjax.models.parameters import abstract_parameters, parameters  # noqa: E402
from vidjax.weights import convert, pretrained, stable_video  # noqa: E402
from vidjax.weights import diffusers as names  # noqa: E402
from vidjax.weights.components import Part  # noqa: E402

PIPELINE = importlib.import_module("diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion")
FRAMES, SIZE = 3, (16, 24)
UNET = dict(
    block_out_channels=(64, 64),  # two features in each of 32 groups: with one alone some biases would do nothing
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    layers_per_block=1,
    num_attention_heads=(2, 4),
    cross_attention_dim=24,
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=24,
    num_frames=FRAMES,
)
VAE = dict(block_out_channels=(32, 64), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 2)
CLIP = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=224,
    patch_size=56,
    projection_dim=24,
    hidden_act="gelu",
)
SCHEDULER = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    interpolation_type="linear",
    prediction_type="v_prediction",
    sigma_min=0.002,
    sigma_max=700.0,
    steps_offset=1,
    timestep_spacing="leading",
    timestep_type="continuous",
    use_karras_sigmas=True,
)


def refill(model):
    """Random numbers in every parameter: no output layer is zero, no scale is one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + 0.2 * noise if is_scale else noise * (0.3 if p.ndim == 1 else p[0].numel() ** -0.5))
    return model.eval()


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """(a folder that diffusers has written, its pipeline)."""
    folder = tmp_path_factory.mktemp("svd")
    made = diffusers.StableVideoDiffusionPipeline(
        vae=refill(diffusers.AutoencoderKLTemporalDecoder(**VAE)),
        image_encoder=refill(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIP))),
        unet=refill(diffusers.UNetSpatioTemporalConditionModel(**UNET)),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER),
        feature_extractor=transformers.CLIPImageProcessor(),
    )
    made.save_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return folder, made


@pytest.fixture(scope="module")
def ours(pipe):
    return pretrained.load(pipe[0])


def error(got, expected):
    return np.linalg.norm(np.asarray(got) - np.asarray(expected)) / np.linalg.norm(expected)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("f")


def to_torch(x, axis=1):
    """With features at `axis`, not last."""
    return torch.from_numpy(np.moveaxis(x, -1, axis).copy())


def test_unet_and_its_gradients(pipe, ours):
    """With a time, numbers and tokens for each of two examples; gradients of every parameter and the input. Tokens are
    three: of a single one queries and keys do not matter."""
    theirs, (graph, params) = pipe[1].unet, (nnx.graphdef(ours.model.unet), parameters(ours.model.unet))
    x, token, numbers = normal(2, FRAMES, 7, 5, 8), normal(2, 3, 24, seed=1), normal(2, 3, seed=2) ** 2 * 30
    time, weight = np.array([1.6, -0.4], "f"), normal(2, FRAMES, 7, 5, 4, seed=3)
    video = to_torch(x, 2).requires_grad_()
    out = theirs(video, torch.from_numpy(time), torch.from_numpy(token), torch.from_numpy(numbers)).sample
    (out * to_torch(weight, 2)).sum().backward()

    def loss(params, x):
        from vidjax.models.layers import sinusoid
        from vidjax.models.parameters import merge

        vector = sinusoid(jnp.asarray(numbers), 8).reshape(2, -1)
        out = merge(graph, params)(x, jnp.broadcast_to(time[:, None], (2, FRAMES)), jnp.asarray(token), vector)
        return (out * weight).sum(), out

    (_, got), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(x))
    assert error(got, np.moveaxis(out.detach().numpy(), 2, -1)) <= 1e-5
    assert error(gradients[1], np.moveaxis(video.grad.numpy(), 2, -1)) <= 1e-4
    keys = [*names.unet_keys(1), *stable_video.UNET_KEYS]
    found = convert.unfit(gradients[0], keys, r"conv_shortcut\.weight$")
    expected = {key: p.grad.numpy() for key, p in theirs.named_parameters()}
    check_gradients(found, expected)


def test_autoencoder(pipe, ours):
    """Latents of pictures, and frames of latents, all at once as it is trained."""
    theirs, codec = pipe[1].vae, ours.model.codec
    x, z = normal(2, *SIZE, 3), normal(1, FRAMES, 8, 12, 4, seed=1)
    with torch.no_grad():
        latents = theirs.encode(to_torch(x)).latent_dist.mode().numpy()
        frames = theirs.decode(to_torch(z[0]), num_frames=FRAMES).sample.numpy()
    assert error(codec.autoencoder.encode(jnp.asarray(x[:, None])).mode[:, 0], np.moveaxis(latents, 1, -1)) <= 1e-5
    assert error(codec.autoencoder.decode(jnp.asarray(z))[0], np.moveaxis(frames, 1, -1)) <= 1e-5
    assert (
        error(codec.autoencoder.decode(jnp.asarray(z[:, :1]))[0, 0], np.moveaxis(frames, 1, -1)[0]) > 1e-3
    )  # it looks over time


@pytest.mark.parametrize("size", [(576, 1024), (100, 224), (300, 50)])
def test_what_clip_sees(size):
    """Pictures larger and smaller than CLIP's 224 pixels, of any aspect."""
    x = normal(1, *size, 3)
    theirs = PIPELINE._resize_with_antialiasing(to_torch(x), (224, 224)).numpy()
    assert error(picture.clip_pixels(jnp.asarray(x), 224), np.moveaxis(theirs, 1, -1)) <= 1e-4  # theirs: places in fp32


def test_image_encoder(pipe, ours):
    """With its projection, on pixels in [-1, 1] that theirs gets normalised."""
    x = normal(2, 224, 224, 3)
    extractor = pipe[1].feature_extractor
    normalised = ((x + 1) / 2 - np.array(extractor.image_mean, "f")) / np.array(extractor.image_std, "f")
    with torch.no_grad():
        expected = pipe[1].image_encoder(to_torch(normalised)).image_embeds.numpy()
    assert error(ours.model.picture.encoder(jnp.asarray(x))[1], expected) <= 1e-5


def test_pipeline(pipe):
    """Two pictures, the same noise, ten steps, guidance that rises over the frames; then pixels."""
    from PIL import Image

    from vidjax.generation.pretrained import load_generator

    folder, theirs = pipe
    pictures = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    noise = normal(2, FRAMES, 8, 12, 4)
    expected = {
        kind: theirs(
            [Image.fromarray(each) for each in pictures],
            *SIZE,
            num_inference_steps=10,
            noise_aug_strength=0.0,
            motion_bucket_id=90,
            fps=9,
            latents=to_torch(noise, 2),
            output_type=kind,
        ).frames
        for kind in ("latent", "np")
    }
    generator = load_generator(folder)
    assert generator.size == (FRAMES, 576, 1024)
    options = dict(size=SIZE, noise=noise, num_steps=10, picture_noise=0.0, motion_bucket=90.0, fps=9.0)
    got = generator.latents(["", ""], pictures=pictures, **options)
    assert error(got, np.moveaxis(expected["latent"].numpy(), 2, -1)) <= 1e-3
    assert np.abs(generator.decode(got) - np.round(255 * expected["np"])).max() <= 1
    level = generator.latents(["", ""], pictures=pictures, **{**options, "first_guidance": None})
    assert error(level, np.moveaxis(expected["latent"].numpy(), 2, -1)) > 1e-2


def test_full_size(tmp_path):
    """Abstractly: every key of the real networks is used once, every parameter filled, and all go back as they were."""
    levels = ("DownEncoderBlock2D",) * 4
    huge = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14)
    kind = transformers.CLIPVisionModelWithProjection
    with torch.device("meta"):
        unet = diffusers.UNetSpatioTemporalConditionModel()
        vae = diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(128, 256, 512, 512), down_block_types=levels, layers_per_block=2
        )
        vision = dict(huge, projection_dim=1024, image_size=224, hidden_act="gelu", architectures=[kind.__name__])
        image = kind(transformers.CLIPVisionConfig(**vision))
    networks, counts = dict(unet=unet, vae=vae, image_encoder=image), {}
    for part, network in networks.items():
        (tmp_path / part).mkdir()
        of_transformers = part == "image_encoder"
        written = network.config.to_json_string() if of_transformers else network.to_json_string()
        (tmp_path / part / "config.json").write_text(written)
    diffusers.EulerDiscreteScheduler(**SCHEDULER).save_pretrained(tmp_path / "scheduler")
    transformers.CLIPImageProcessor().save_pretrained(tmp_path / "feature_extractor")
    model = pretrained.load(tmp_path, weights=False).model
    rules = [*stable_video.UNET, *names.unet(2)]
    own = Part("unet", model.unet, rules, [*names.unet_keys(2), *stable_video.UNET_KEYS])
    for part in (own, *stable_video.VideoComponents.of(tmp_path).parts(model)):
        theirs = {key: tuple(value.shape) for key, value in networks[part.name].named_parameters()}
        shapes = {path: value.shape for path, value in abstract_parameters(part.module).items()}
        tensors = {key: np.broadcast_to(np.uint8(0), shape) for key, shape in theirs.items()}
        found = convert.fit(shapes, tensors, part.rules)
        back = convert.unfit(found, part.keys, r"(conv_shortcut|quant_conv)\.weight$")
        assert {key: value.shape for key, value in back.items()} == theirs
        counts[part.name] = sum(value.size for value in found.values())
    assert counts == {"unet": 1_524_623_082, "vae": 97_742_847, "image_encoder": 632_076_800}
