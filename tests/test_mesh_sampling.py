"""Sampling over eight simulated devices: the videos of one, from parameters that stay where training has them."""

import pytest
from runtime.test_sharding import eight_devices

MODEL = """
import dataclasses, math, re
from functools import partial
from flax import nnx
from vidjax.generation import editing
from vidjax.models.conditioning import TextEmbedder
from vidjax.diffusion.schedule import cosine
from vidjax.generation.generator import Generator
from vidjax.generation.options import SampleConfig
from vidjax.generation.sampling import guidance_mode
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.text_encoder import byte_ids
from vidjax.models.unet import UNetConfig
from vidjax.models.parameters import parameters
from vidjax.models.video_model import Codec, VideoModel

def network(width=32, **more):
    rngs = nnx.Rngs(0)
    coder = dict(patch=(2, 8, 8), latent_channels=8, channels=(16,), blocks=(1,), decoder_blocks=(1,), groups=4)
    unet = dict(channels=(width,), blocks_per_level=0, attention_levels=(True,), heads=2, groups=4, positions=True)
    unet |= dict(block=(("attn1", "frame"), ("attn2", "tokens"), ("attn_temp", "time")))
    unet |= dict(in_channels=8, out_channels=8, tokens_dim=16, vector_dim=16)
    text = TextEmbedder(dim=16, layers=1, heads=2, length=32, rngs=rngs)
    codec = Codec(Autoencoder(AutoencoderConfig(**coder), rngs=rngs), 0.1, 1.3)
    model = VideoModel(UNetConfig(**unet | more), {"text": text}, codec, rngs=rngs)
    random = np.random.default_rng(0)
    noisy = lambda v: v + 0.1 * random.standard_normal(v.shape, np.float32)
    return nnx.graphdef(model), {path: noisy(value) for path, value in parameters(model).items()}

def generator(mesh, graphdef, params, dtype="float32", **sample):
    how = SampleConfig(num_steps=3, **sample)
    tokens = partial(byte_ids, length=32)
    return Generator(graphdef, params, cosine(None), "v", tokens, (8, 16, 16), 3, how, mesh, dtype)

alone = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), sharding.AXES)
error = lambda a, b: float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())
"""


@pytest.fixture(scope="module")
def many():
    """What a mesh of two by two by two devices gives, beside what one gives."""
    return eight_devices(
        MODEL
        + """
graphdef, params = network(96)
how = dict(eta=1.0, guidance_scale=3.0, rescale=0.5)
prompts = ["a cat", "a dog", "a fox"]
one = generator(alone, graphdef, params, **how)
latents = one.latents(prompts)
video = one.decode(latents)
back = one.encode(video)
chunked = one.latents(prompts[:1], chunk=2, overlap=1)
clip = np.asarray(video[:1])
start = dict(strength=0.6, sampler="unipc", eta=0.0, num_steps=4, edit_frames="4:8", guidance_scale=1.0)

def edited(made):
    made.defaults = dataclasses.replace(made.defaults, **start)
    return editing.edits(made, clip, ["a cat", "a dog", "a fox", "a hen", "an owl"], "a mouse", None)

mesh = sharding.make_mesh(fsdp=2, tensor=2, context=2)
many = generator(mesh, graphdef, params, **how)
made = many.latents(prompts)
found = {
    "size": [float(np.abs(latents).max()), float(np.abs(back).max())],
    "latents": error(made, latents),
    "video": error(many.decode(latents), video),
    "back": error(many.encode(video), back),
    "shapes": [made.shape == latents.shape, many.decode(latents).shape == video.shape],
    "cut": sum(not value.sharding.is_fully_replicated for value in many.params.values()),
    "fingerprint": many.fingerprint() == one.fingerprint(),
    "chunked": error(many.latents(prompts[:1], chunk=2, overlap=1), chunked),
    "edits": error(edited(many), edited(one)),
}
"""
    )


def test_a_mesh_gives_the_samples_of_one_device(many):
    """Three videos, which no mesh of eight divides, with noise in every step and guidance."""
    scale = many["size"]
    assert many["latents"] < 1e-4 * scale[0] and many["back"] < 1e-4 * scale[1]
    assert many["video"] <= 1 and many["shapes"] == [True, True] and many["fingerprint"] and many["cut"] > 0


def test_edits_are_made_as_many_at_a_time_as_the_mesh_has_room_for(many):
    """Two of five prompts at a time, each with the noise that it has alone; up to rounding to 8 bits."""
    assert many["edits"] <= 1


def test_frames_that_context_does_not_divide_are_worked_off_all_the_same(many):
    """Chunks of two frames and the clip's first one, on two devices along the context axis."""
    assert many["chunked"] < 1e-4 * many["size"][0]


@pytest.fixture(scope="module")
def cut():
    """A generator whose parameters fsdp cuts in eight, with what its compiled sampler is called with."""
    return eight_devices(
        MODEL
        + """
graphdef, params = network(96)
mesh = sharding.make_mesh(fsdp=8)
made = generator(mesh, graphdef, params, guidance_scale=2.0)
sampler, calls = made._sample, []
made._sample = lambda *args, **static: (calls.append((args, static)), sampler(*args, **static))[1]
made.latents(["a cat"] * 2)
(args, static), = calls
with jax.set_mesh(mesh):
    text = sampler.lower(*args, **static).compile().as_text()
gathers, where = {"before": [], "in": []}, "in"
for line in text.splitlines():
    if line.endswith("{"):
        where = "before" if line.startswith("ENTRY") else "in"
    if shape := re.search(r"= \\w+\\[([0-9,]*)\\]\\S* all-gather(-start)?\\(", line):
        gathers[where].append(math.prod(map(int, shape[1].split(","))))
wanted = sharding.tree_sharding(mesh, params)
large = [path for path, value in params.items() if value.size >= 2**16]
found = {
    "as in training": all(args[0][path].sharding == wanted[path] for path in params),
    "bytes": max(args[0][path].addressable_shards[0].data.nbytes / params[path].nbytes for path in large),
    "moved": [args[0][path] is made.params[path] for path in large],
    "large": sum(path.startswith("unet.") for path in large),
    "gathers": gathers,
}
"""
    )


def test_parameters_lie_as_in_training(cut):
    assert cut["as in training"] and cut["bytes"] == 1 / 8 and cut["large"] > 4 and all(cut["moved"])


def test_what_fsdp_has_cut_is_gathered_layer_by_layer_in_each_step(cut):
    """No parameter is whole before the first step: that of all of them would be the model on one device."""
    assert max(cut["gathers"]["before"], default=0) < 2**16
    assert sum(size >= 2**16 for size in cut["gathers"]["in"]) == cut["large"]


@pytest.fixture(scope="module")
def precise():
    return eight_devices(
        MODEL
        + """
graphdef, params = network()
how = dict(guidance_scale=1.5)
full = generator(alone, graphdef, params, **how)
half = generator(sharding.make_mesh(data=2, fsdp=2, context=2), graphdef, params, "bfloat16", **how)
exact, near = (each.latents(["a cat", "a dog"]) for each in (full, half))
kinds = lambda made: {str(value.dtype) for value in made.params.values()}
network_dtype = str(jax.eval_shape(lambda p: half.network.model(p).unet.conv_in.kernel[...], half.params).dtype)
found = {
    "near": error(exact, near) / float(np.abs(exact).max()),
    "kept": sorted(kinds(half)),
    "network": network_dtype,
    "result": str(near.dtype),
    "video": error(full.decode(exact), half.decode(exact)),
}
asked = {}
for sizes in ((8, 1, 1, 1), (1, 1, 1, 8), (2, 2, 1, 2)):
    made = generator(sharding.make_mesh(*sizes), graphdef, params)
    asked[str(sizes[0])] = [guidance_mode(SampleConfig(guidance_scale=2.0), made.mesh, n, (4, h, h, 8))
        for n, h in ((3, 512), (4, 512), (5, 512), (5, 16))]
found["asked"] = asked
found["fits"] = [dict(sharding.fitting_mesh(**how).shape) for how in (
    dict(data=-1, fsdp=2), dict(data=16, fsdp=4), dict(data=1, fsdp=-1, context=2), dict(data=-1, fsdp=3, tensor=16))]
"""
    )


def test_bf16_samples_are_near_and_keep_the_state_as_it_is(precise):
    """Those of a mesh, tensor among its axes, to those of one device in fp32."""
    assert precise["network"] == "bfloat16" and precise["kept"] == ["float32"] and precise["result"] == "float32"
    assert 0 < precise["near"] < 0.05 and precise["video"] <= 8


def test_guidance_asks_once_where_that_finds_idle_devices_or_a_device_has_little(precise):
    """Eight devices for a batch: up to four large videos fill them as pairs, five do not. One device: never so."""
    assert precise["asked"]["8"] == [["at once", 4], ["at once", 4], ["apart", 8], ["at once", 8]]
    assert precise["asked"]["1"] == [["apart", 3], ["apart", 4], ["apart", 5], ["at once", 5]]
    assert precise["asked"]["2"] == [["apart", 4], ["apart", 4], ["apart", 8], ["at once", 6]]


def test_a_run_samples_on_other_devices_than_it_was_trained_on(precise):
    """As far as the axes divide the devices at hand, here eight."""
    sizes = [[shape[axis] for axis in ("data", "fsdp", "tensor", "context")] for shape in precise["fits"]]
    assert sizes == [[4, 2, 1, 1], [2, 4, 1, 1], [1, 4, 1, 2], [1, 1, 8, 1]]
