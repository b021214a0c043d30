"""Where frames are, for the network that diffuses flow."""

import jax.numpy as jnp
import numpy as np

from vidjax.models.flow_unet import find_angles, rotate

FRAMES, TURNED = 40, 32


def test_in_bf16_frames_as_far_apart_have_the_same_product():
    frequencies = 10_000.0 ** -(jnp.arange(0, TURNED, 2) / TURNED)
    ones = jnp.ones((FRAMES, 1, TURNED), jnp.bfloat16)
    turned = rotate(ones, find_angles(frequencies.astype(ones.dtype), FRAMES))[:, 0].astype(jnp.float32)
    products = np.asarray(turned @ turned.T) / TURNED
    for apart in range(FRAMES):
        same = np.diagonal(products, apart)
        wanted = np.cos(apart * np.asarray(frequencies)).mean()
        np.testing.assert_allclose(same, wanted, atol=0.004)
