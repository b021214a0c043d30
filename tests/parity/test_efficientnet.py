"""EfficientNet-Lite0 layer by layer against the package efficientnet_lite_pytorch, and its file as torch reads it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from vidjax.models.efficientnet import EfficientNetLite0  # noqa: E402
from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.weights import efficientnet  # noqa: E402
from vidjax.weights.convert import load  # noqa: E402


def reference(**options):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    return package.EfficientNet.from_name("efficientnet-lite0", **options).eval().requires_grad_(False)


def filled(file):
    model = nnx.eval_shape(lambda: EfficientNetLite0(rngs=OneKey()))
    load(model, efficientnet.read_efficientnet(file), efficientnet.RULES, efficientnet.UNUSED)
    return model


def nhwc(x):
    return jnp.asarray(x.permute(0, 2, 3, 1).numpy())


def error(got, expected):
    expected = np.moveaxis(expected.numpy(), 1, -1)
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def test_random_weights_layer_by_layer(tmp_path):
    """Each on torch's input of it. Sizes that strides do not divide: the odd pixel is padded behind."""
    net, generator = reference(image_size=None), torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    tensors = {}
    for key, value in net.state_dict().items():
        if value.ndim == 4:
            tensors[key] = draw(*value.shape) * (2 / value[0].numel()) ** 0.5
        elif key.endswith("running_var"):
            tensors[key] = 0.3 + draw(*value.shape).square()
        else:
            tensors[key] = value if not value.ndim else 0.3 * draw(*value.shape) + ("weight" in key)
    net.load_state_dict(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    x = draw(2, 3, 75, 66).clamp(-1, 1)
    relu6 = torch.nn.functional.relu6
    layers = [lambda x: relu6(net._bn0(net._conv_stem(x))), *net._blocks, lambda x: relu6(net._bn1(net._conv_head(x)))]
    maps = list(itertools.accumulate(layers, lambda x, layer: layer(x), initial=x))
    model = filled(tmp_path / "w.safetensors")
    ours = [model.stem, *model.blocks, model.head]
    got = jax.jit(lambda maps: [layer(x) for layer, x in zip(ours, maps, strict=True)])(list(map(nhwc, maps[:-1])))
    for i, (value, expected) in enumerate(zip(got, maps[1:])):
        assert error(value, expected) <= 1e-5, i


def test_the_packaged_file_is_read_as_torch_reads_it():
    if (file := efficientnet.installed()) is None:
        pytest.skip(f"needs {efficientnet.INSTALL}")
    theirs, ours = torch.load(file, weights_only=True), efficientnet.read_efficientnet(file)
    assert {key for key in theirs if "num_batches" not in key and not key.startswith("_fc")} == ours.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key].numpy(), err_msg=key)


def test_features_by_the_packaged_weights():
    net = reference()
    if (file := efficientnet.installed()) is None:
        pytest.skip(f"needs {efficientnet.INSTALL}")
    net.load_state_dict(torch.load(file, weights_only=True))
    x = torch.rand((1, 3, 224, 224), generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = filled(file)
    got = jax.jit(lambda x: model(x))(nhwc(x))
    assert error(got, net.extract_features(x).mean((2, 3))) <= 1e-5
