"""I2VGen-XL against diffusers: its U-Net, its text encoder, what it sees of a picture, and the whole pipeline."""

import importlib
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from parity.gradients import check_gradients  # noqa: E402
from parity.test_stable_video import error, normal, refill, to_torch  # noqa: E402
from PIL import Image  # noqa: E402
from tiny_folder import VOCABULARY, write_configs  # noqa: E402

from vidjax.generation.pretrained import load_generator  # noqa: E402
from vidjax.models import picture_tokens  # noqa: E402
from vidjax.models.parameters import abstract_parameters, merge, parameters  # noqa: E402
from vidjax.weights import convert, i2vgen, pretrained  # noqa: E402
from vidjax.weights import diffusers as names  # noqa: E402
from vidjax.weights.components import Part  # noqa: E402

PIPELINE = importlib.import_module("diffusers.pipelines.deprecated.i2vgen_xl.pipeline_i2vgen_xl")
FRAMES, SIZE, TOKENS = 3, (16, 24), 24
UNET = dict(
    sample_size=8,
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    layers_per_block=1,
    cross_attention_dim=TOKENS,
    attention_head_dim=8,
    norm_num_groups=8,
)
VAE = dict(
    block_out_channels=(32, 32),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=8,
)
TOWER = dict(hidden_size=TOKENS, intermediate_size=32, num_attention_heads=2, hidden_act="gelu")
TEXT = dict(
    TOWER,
    num_hidden_layers=3,
    vocab_size=len(VOCABULARY),
    max_position_embeddings=12,
    bos_token_id=len(VOCABULARY) - 2,
    eos_token_id=len(VOCABULARY) - 1,
)
IMAGE = dict(TOWER, num_hidden_layers=2, image_size=32, patch_size=8, projection_dim=TOKENS)
SCHEDULER = dict(
    beta_schedule="squaredcos_cap_v2",
    clip_sample=False,
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    set_alpha_to_one=True,
    steps_offset=1,
    timestep_spacing="leading",
)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """(a folder that diffusers has written, its pipeline)."""
    folder = tmp_path_factory.mktemp("i2vgen")
    tokenizer = write_configs(folder / "words", {"text_encoder": TEXT}) / "tokenizer"
    made = diffusers.I2VGenXLPipeline(
        vae=refill(diffusers.AutoencoderKL(**VAE)),
        text_encoder=refill(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(tokenizer),
        image_encoder=refill(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**IMAGE))),
        feature_extractor=transformers.CLIPImageProcessor(crop_size=32, size=32),
        unet=refill(diffusers.I2VGenXLUNet(**UNET)),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
    )
    made.save_pretrained(folder / "pipeline")
    made.set_progress_bar_config(disable=True)
    vars(made.text_encoder)["text_model"] = made.text_encoder  # as transformers had it until 5
    return folder / "pipeline", made


@pytest.fixture(scope="module")
def ours(pipe):
    return pretrained.load(pipe[0])


def all_parts(model, folder):
    own = Part("unet", model.unet, [], [*names.unet_keys(model.unet.config.blocks_per_level), *i2vgen.UNET_KEYS])
    return [own, *i2vgen.PictureAndText.of(folder).parts(model)]


def test_unet_and_its_gradients(pipe, ours):
    """With a time, a rate, a text and a picture for each of two examples; gradients of every parameter in unet/ and
    the input."""
    theirs, graph, params = pipe[1].unet, nnx.graphdef(ours.model), parameters(ours.model)
    x, text, pixels = normal(2, FRAMES, 7, 5, 4), normal(2, 4, TOKENS, seed=1), normal(2, 32, 32, 3, seed=2)
    latents, weight = normal(2, FRAMES, 7, 5, 4, seed=3), normal(2, FRAMES, 7, 5, 4, seed=4)
    time, fps = np.array([801.0, 11.0], "f"), np.array([16.0, 8.0], "f")
    of_clip = pipe[1].feature_extractor
    normalised = ((pixels + 1) / 2 - np.array(of_clip.image_mean, "f")) / np.array(of_clip.image_std, "f")
    with torch.no_grad():
        embedding = pipe[1].image_encoder(to_torch(normalised)).image_embeds[:, None]
    video, told = to_torch(x).requires_grad_(), dict(image_latents=to_torch(latents), image_embeddings=embedding)
    told |= dict(fps=torch.from_numpy(fps), encoder_hidden_states=torch.from_numpy(text))
    out = theirs(video, torch.from_numpy(time), **told).sample
    (out * to_torch(weight)).sum().backward()

    def loss(params, x):
        from vidjax.models.conditioning import Conditioning

        model = merge(graph, params)
        picture = dict(pixels=pixels, latents=jnp.asarray(latents), fps=jnp.asarray(fps), shown=jnp.ones(2))
        seen = model.picture({name: jnp.asarray(value) for name, value in picture.items()})
        seen["tokens"] = jnp.concatenate([text, seen["tokens"]], 1)
        out = model(x, jnp.broadcast_to(time[:, None], (2, FRAMES)), Conditioning(**seen))
        return (out * weight).sum(), out

    (_, got), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(x))
    assert error(got, np.moveaxis(out.detach().numpy(), 1, -1)) <= 1e-5
    assert error(gradients[1], np.moveaxis(video.grad.numpy(), 1, -1)) <= 1e-4
    moved = merge(graph, gradients[0])
    found = {}
    for part in all_parts(moved, pipe[0])[:2]:
        found |= convert.unfit(parameters(part.module), part.keys, r"conv_shortcut\.weight$")
    expected = {key: p.grad.numpy() for key, p in theirs.named_parameters()}
    check_gradients(found, expected)


def test_text_of_the_last_layer_but_one(pipe, ours):
    prompts = ["the cat", "a " + string.ascii_lowercase]
    vars(pipe[1])["_guidance_scale"] = 9.0
    with torch.no_grad():
        expected, _ = pipe[1].encode_prompt(prompts, "cpu", 1, prompts, clip_skip=1)
    ids = jnp.asarray(np.stack([ours.tokenize(prompt) for prompt in prompts]))
    assert error(ours.model.text(ids)["tokens"], expected.numpy()) <= 1e-5


@pytest.mark.parametrize("size", [(40, 60), (16, 24), (90, 48)])
def test_what_is_seen_of_a_picture(size):
    """Cut to the video, and a square for CLIP, bit for bit; in training the same but for the rounding of pixels."""
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    theirs = Image.fromarray(picture)
    frame = PIPELINE._center_crop_wide(theirs, (24, 16))
    np.testing.assert_array_equal(picture_tokens.cut(picture, (16, 24)), np.asarray(frame))
    seen = np.asarray(PIPELINE._resize_bilinear(PIPELINE._center_crop_wide(theirs, (size[1],) * 2), (32, 32)))
    np.testing.assert_array_equal(picture_tokens.scale_for_clip(picture, size[1], 32), seen)
    trained = picture_tokens.cut_squares(jnp.asarray(picture[None], jnp.float32), 32)[0]
    np.testing.assert_allclose(trained, seen, atol=1.5)


def test_pipeline(pipe, monkeypatch):
    """Two pictures of another size and shape than the video, the same noise, ten steps; then pixels. Their numbers
    divide evenly: else theirs, by a rounding down of 24 to 23, has a black column."""
    folder, theirs = pipe
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 96, 3), np.uint8)
    prompts, noise = ["the cat", "a dog"], normal(2, FRAMES, 8, 12, 4)
    generator = load_generator(folder)
    assert generator.size == (16, 704, 1280)
    made = {}
    entry = picture_tokens.PictureTokens.entry

    def kept(self, codec, frame, pixels, eps, places, fps):
        jax.debug.callback(lambda eps: made.update(eps=np.array(eps)), eps)
        return entry(self, codec, frame, pixels, eps, places, fps)

    monkeypatch.setattr(picture_tokens.PictureTokens, "entry", kept)
    options = dict(frames=FRAMES, size=SIZE, noise=noise, num_steps=10, negative_prompt="blur", fps=12.0)
    got = generator.latents(prompts, pictures=list(pictures), **options)
    posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(posterior, "sample", lambda self: self.mean + self.std * to_torch(made["eps"]))
    expected = theirs(
        prompts,
        [Image.fromarray(each) for each in pictures],
        *SIZE,
        target_fps=12,
        num_frames=FRAMES,
        num_inference_steps=10,
        negative_prompt=["blur"] * 2,
        latents=to_torch(noise),
        output_type="latent",
    ).frames
    assert error(got, np.moveaxis(expected.numpy(), 1, -1)) <= 1e-3
    with torch.no_grad():
        frames = theirs.video_processor.postprocess_video(theirs.decode_latents(expected), output_type="np")
    assert np.abs(generator.decode(got) - np.round(255 * frames)).max() <= 1


def test_full_size(tmp_path):
    """Abstractly: every key of the real U-Net is used once, every parameter filled, and all go back as they were."""
    with torch.device("meta"):
        theirs = diffusers.I2VGenXLUNet()
    huge = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    vision = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14)
    configs = {
        "unet": {**theirs.config, "_class_name": "I2VGenXLUNet"},
        "vae": {**VAE, "_class_name": "AutoencoderKL"},
        "text_encoder": {**TEXT, **huge},
        "image_encoder": dict(vision, architectures=["CLIPVisionModelWithProjection"], projection_dim=1024),
        "feature_extractor": dict(crop_size=224, size=224),
        "scheduler": SCHEDULER,
    }
    folder = write_configs(tmp_path / "folder", configs)
    model = pretrained.load(folder, weights=False).model
    expected = {key: tuple(value.shape) for key, value in theirs.named_parameters()}
    tensors = {key: np.broadcast_to(np.uint8(0), shape) for key, shape in expected.items()}
    found, back = {}, {}
    rules = [*i2vgen.UNET, *names.unet(2)], i2vgen.READ_PICTURE
    ignored = i2vgen.PICTURE, all_parts(model, folder)[1].ignore
    for part, rule, ignore in zip(all_parts(model, folder), rules, ignored):
        shapes = {path: value.shape for path, value in abstract_parameters(part.module).items()}
        found[part.keys is i2vgen.PICTURE_KEYS] = fitted = convert.fit(shapes, tensors, rule, ignore)
        back |= {key: v.shape for key, v in convert.unfit(fitted, part.keys, r"conv_shortcut\.weight$").items()}
    assert back == expected
    assert sum(value.size for each in found.values() for value in each.values()) == 1_420_469_224
    picture = {name: 0 for name in i2vgen.PICTURE_PARTS}
    for path, value in found[True].items():
        picture[path.partition(".")[0]] += value.size
    assert picture == {"tokens": 6_558_976, "latent_tokens": 610_528, "frames": 3_492 + 288}
