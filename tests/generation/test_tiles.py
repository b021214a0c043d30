"""In tiles as in one piece, wherever the receptive field allows."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidjax.diffusion.schedule import cosine
from vidjax.errors import InputError
from vidjax.generation.generator import Generator
from vidjax.generation.options import SampleConfig
from vidjax.generation.tiles import blend, in_tiles, places
from vidjax.models.autoencoder import PATCHES, Autoencoder
from vidjax.models.parameters import parameters
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import Codec, VideoModel


@pytest.mark.parametrize("length, tile, overlap", [(5, 5, 2), (6, 5, 2), (7, 4, 2), (23, 8, 4), (40, 8, 7), (9, 4, 0)])
def test_tiles_cover_everything_and_weigh_one(length, tile, overlap):
    starts = places(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] == max(length - tile, 0)
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))
    total = np.zeros(3 * length)
    for start, share in zip(starts, blend(starts, min(tile, length), 3)):
        assert (share >= 0).all()
        total[3 * start : 3 * start + len(share)] += share
    np.testing.assert_allclose(total, 1)


def test_a_function_of_each_element_is_the_same_in_tiles():
    x = np.random.default_rng(0).standard_normal((2, 7, 10, 6, 3)).astype(np.float32)
    shapes = set()

    def triple(part):
        shapes.add(part.shape)
        return np.repeat(3 * part, 2, 2)

    found = in_tiles(triple, x, (4, 4, 8), (2, 1, 0), into=(1, 2, 1))
    np.testing.assert_allclose(found, np.repeat(3 * x, 2, 2), rtol=1e-6)
    assert shapes == {(2, 4, 4, 6, 3)}
    video = np.random.default_rng(1).integers(0, 256, (1, 4, 9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(in_tiles(lambda part: part, video, (2, 4, 4), (1, 2, 2)), video)


def test_an_encoder_and_a_decoder_in_tiles_are_those_in_one_piece():
    """The encoder sees 3 latents each way and one frame, the decoder less: overlaps of 12 and 4 leave such quarters."""
    config = dataclasses.replace(PATCHES, latent_channels=3, channels=(4,), blocks=(1,), decoder_blocks=(1,), groups=1)
    model = Autoencoder(dataclasses.replace(config, patch=(1, 2, 2)), rngs=nnx.Rngs(0))
    same = lambda x, ctx, dtype: x
    for part in (model.encoder, model.decoder):  # norms over a frame would see their tile
        part.norm_out = same
        for _, module in nnx.iter_modules(part):
            for name in ("norm1", "norm2"):
                if hasattr(module, name):
                    setattr(module, name, same)
    rng = np.random.default_rng(0)
    for conv in (model.encoder.conv_out, model.decoder.conv_out):
        conv.kernel[...] = jnp.asarray(rng.normal(0, 0.3, conv.kernel.shape), jnp.float32)
    x = jnp.asarray(rng.uniform(-1, 1, (1, 9, 36, 20, 3)), jnp.float32)
    encode, decode = jax.jit(lambda x: model.encode(x).mean), jax.jit(model.decode)
    z = encode(x)
    options = dict(tile=(7, 14, 99), overlap=(4, 12, 0))
    found = in_tiles(encode, x, **options, strides=model.strides)
    np.testing.assert_allclose(found, z, atol=1e-5)
    np.testing.assert_allclose(in_tiles(decode, z, **options, into=model.strides), decode(z), atol=1e-5)
    near = in_tiles(decode, z, (7, 10, 99), (4, 2, 0), into=model.strides)
    assert np.abs(near - decode(z)).max() > 1e-3  # an overlap that is too small shows


def test_an_overlap_that_is_no_smaller_than_the_tile_is_refused():
    with pytest.raises(InputError, match="tiles of 4 latents cannot overlap by 4; take 0 to 3"):
        in_tiles(lambda x: x, np.zeros((1, 9, 9, 9, 3)), (4, 4, 4), (4, 0, 0))


def test_a_generator_decodes_in_tiles_if_its_recipe_says_so():
    config = dataclasses.replace(PATCHES, latent_channels=2, channels=(4,), blocks=(0,), decoder_blocks=(0,), groups=1)
    unet = UNetConfig(2, 2, channels=(4,), blocks_per_level=1, attention_levels=(False,), heads=1, groups=1)

    def make():
        codec = Codec(Autoencoder(dataclasses.replace(config, patch=(2, 2, 2)), rngs=nnx.Rngs(0)))
        return VideoModel(unet, {}, codec, rngs=nnx.Rngs(1))

    params = jax.jit(lambda: parameters(make()))()
    graphdef, schedule = nnx.graphdef(nnx.eval_shape(make)), cosine(steps=None)
    pair = [
        Generator(graphdef, params, schedule, "v", None, (8, 8, 8), 3, SampleConfig(tile=tile, tile_overlap=(0, 4, 0)))
        for tile in (None, (2, 8, 8))
    ]
    z = np.random.default_rng(0).standard_normal((1, 4, 20, 6, 2)).astype(np.float32)
    whole, tiled = (generator.decode(z) for generator in pair)
    assert tiled.dtype == np.uint8 and tiled.std() > 1
    np.testing.assert_allclose(tiled.astype(int), whole.astype(int), atol=1)
    whole, tiled = (generator.encode(tiled) for generator in pair)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
