"""Our autoencoder with diffusers' random weights gives diffusers' numbers; LVDM's layers are torch's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidjax.models.autoencoder import STABLE_DIFFUSION, Autoencoder
from vidjax.models.autoencoder_layers import Shrink, Stretch
from vidjax.models.keys import OneKey
from vidjax.models.layers import Context
from vidjax.weights.convert import fit, load, parameters
from vidjax.weights.diffusers_autoencoder import DIFFUSERS_AUTOENCODER

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def reference(channels, blocks, groups):
    levels = len(channels)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels,
        layers_per_block=blocks,
        norm_num_groups=groups,
        latent_channels=4,
    ).eval()


@pytest.mark.parametrize("size", [(24, 40), (12, 20)], ids=["odd latents", "odd middle"])
def test_encode_and_decode_are_those_of_diffusers(size):
    torch.manual_seed(0)
    theirs = reference((4, 8, 8), 1, 4)
    for parameter in theirs.parameters():  # nothing stays at a start that hides an error
        parameter.data += 0.1 * torch.randn_like(parameter)
    config = dataclasses.replace(
        STABLE_DIFFUSION,
        channels=(4, 8, 8),
        blocks=(1,) * 3,
        decoder_blocks=(2,) * 3,
        steps=((1, 2, 2),) * 2,
        groups=4,
    )
    ours = nnx.eval_shape(lambda: Autoencoder(config, rngs=OneKey()))
    load(ours, {k: v.numpy() for k, v in theirs.state_dict().items()}, DIFFUSERS_AUTOENCODER)
    x = torch.rand(2, 3, *size) * 2 - 1
    with torch.no_grad():
        posterior = theirs.encode(x).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    video = jnp.asarray(x.numpy().transpose(0, 2, 3, 1))[:, None]
    q, back = jax.jit(lambda x: (ours.encode(x), ours.decode(ours.encode(x).mode)))(video)
    for mine, other in ((q.mean, posterior.mean), (q.logvar, posterior.logvar), (back, decoded)):
        other = other.numpy().transpose(0, 2, 3, 1)[:, None]
        assert np.linalg.norm(mine - other) < 1e-4 * np.linalg.norm(other)
        np.testing.assert_allclose(mine, other, atol=1e-4 * np.abs(other).max())
    np.testing.assert_allclose(q.kl(), posterior.kl().numpy(), rtol=1e-4)


def test_every_key_of_the_full_size_checkpoint_has_its_parameter():
    with torch.device("meta"):
        theirs = reference((128, 256, 512, 512), 2, 32)
    keys = {k: np.broadcast_to(np.float32(0), tuple(v.shape)) for k, v in theirs.state_dict().items()}
    model = nnx.eval_shape(lambda: Autoencoder(STABLE_DIFFUSION, rngs=OneKey()))
    shapes = {path: leaf.shape for path, leaf in parameters(model).items()}
    assert fit(shapes, keys, DIFFUSERS_AUTOENCODER).keys() == shapes.keys()
    for new, old in dict(to_q="query", to_k="key", to_v="value").items():
        keys = {k.replace(f".{new}.", f".{old}."): v for k, v in keys.items()}
    keys = {k.replace(".to_out.0.", ".proj_attn."): v for k, v in keys.items()}
    assert fit(shapes, keys, DIFFUSERS_AUTOENCODER).keys() == shapes.keys()


@pytest.mark.parametrize("strides", [(2, 2, 2), (1, 2, 2)])
def test_lvdm_resampling_is_that_of_torch(strides):
    ctx = Context(emb=jnp.zeros((1, 1, 0)))
    x = torch.randn(1, 3, 4, 6, 4)
    video = jnp.asarray(x.numpy().transpose(0, 2, 3, 4, 1))
    pads = [n for s in reversed(strides) for n in ((5 - s) // 2, (4 - s) // 2)]
    padded = torch.nn.functional.pad(x, pads, mode="replicate")
    shrink, stretch = (kind(3, 5, strides, rngs=nnx.Rngs(0)).conv for kind in (Shrink, Stretch))
    kernel = torch.from_numpy(np.array(shrink.kernel[...]))  # [*k, in, out]
    expected = torch.nn.functional.conv3d(padded, kernel.permute(4, 3, 0, 1, 2), stride=strides)
    layer = Shrink(3, 5, strides, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(video, ctx), expected.numpy().transpose(0, 2, 3, 4, 1), atol=1e-4)
    kernel = torch.from_numpy(np.array(stretch.kernel[...])).flip(0, 1, 2)
    expected = torch.nn.functional.conv_transpose3d(
        padded, kernel.permute(3, 4, 0, 1, 2), stride=strides, padding=(3, 3, 3)
    )
    layer = Stretch(3, 5, strides, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(video, ctx), expected.numpy().transpose(0, 2, 3, 4, 1), atol=1e-4)
