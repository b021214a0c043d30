"""A flow autoencoder small enough for a test, its parameters drawn by numpy: JAX would compile each draw."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidjax.models.flow_autoencoder import FlowAutoencoder, FlowConfig
from vidjax.models.keys import OneKey
from vidjax.models.parameters import abstract_parameters, merge

SMALL = FlowConfig(regions=2, width=8, region_width=8, widest=16, blocks=1, levels=1, bottleneck=1, groups=4)


def random_model(config: FlowConfig = SMALL) -> FlowAutoencoder:
    """The model with random parameters, its background at rest."""
    model, rng = nnx.eval_shape(lambda: FlowAutoencoder(config, rngs=OneKey())), np.random.default_rng(0)
    params = {}
    for path, value in abstract_parameters(model).items():
        drawn = rng.standard_normal(value.shape, np.float32)
        fan = np.prod(value.shape[:-1]) if len(value.shape) > 1 else 100
        params[path] = jnp.asarray(drawn / np.sqrt(fan) + path.endswith(".scale"), jnp.float32)
    params["background.out.bias"] = jnp.array([1.0, 0, 0, 0, 1, 0])
    return merge(nnx.graphdef(model), params)
