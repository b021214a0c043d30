"""Where a stage's random parameters come from."""

import jax
import numpy as np

from vidjax.models.keys import Keys
from vidjax.models.parameters import parameters
from vidjax.models.unet import UNet, UNetConfig
from vidjax.training.stage import drawn


def test_parameters_drawn_one_by_one_are_those_drawn_in_one_program():
    config = UNetConfig(channels=(8,), attention_levels=True, blocks_per_level=0, groups=4, tokens_dim=8, heads=2)
    init = lambda rngs: UNet(config, rngs=rngs)
    found = parameters(drawn(init, 3, dict(data=1))(True)[1])
    wanted = jax.jit(lambda: parameters(init(Keys(jax.random.key(3, impl="rbg")))))()
    assert found.keys() == wanted.keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, wanted[path], path)
