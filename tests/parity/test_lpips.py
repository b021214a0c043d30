"""LPIPS with VGG16 against torch's own operations, from one file of random weights; and what is said of other files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from vidjax.errors import InputError
from vidjax.models.keys import OneKey
from vidjax.models.parameters import abstract_parameters, merge
from vidjax.models.vgg import CHANNELS, LPIPS
from vidjax.weights.lpips import read_lpips

torch = pytest.importorskip("torch")
PLACES = [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]]  # of torchvision's vgg16().features


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(file, tensors): He's normal for the network, so that no level dies, and heads above zero as the released are."""
    rng, tensors, width = np.random.default_rng(0), {}, 3
    for level, (places, dims) in enumerate(zip(PLACES, CHANNELS)):
        for place, dim in zip(places, dims):
            kernel = rng.standard_normal((dim, width, 3, 3), np.float32) * np.float32(np.sqrt(2 / (9 * width)))
            tensors[f"features.{place}.weight"] = kernel
            tensors[f"features.{place}.bias"] = rng.standard_normal(dim, np.float32) * np.float32(0.1)
            width = dim
        tensors[f"lin{level}.model.1.weight"] = rng.random((1, width, 1, 1), np.float32)
    tensors["classifier.0.weight"] = np.zeros((2, 2), np.float32)  # torchvision's file has them
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    save_file(tensors, path)
    return path, tensors


def abstract():
    model = nnx.eval_shape(lambda: LPIPS(rngs=OneKey()))
    return model, {path: value.shape for path, value in abstract_parameters(model).items()}


def reference(tensors, a, b):
    """Zhang et al. 2018, equation 1, on [n, 3, h, w] in [-1, 1]."""
    f, t = torch.nn.functional, {k: torch.from_numpy(v) for k, v in tensors.items()}
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))

    def features(x):
        x, found = (x - mean) / std, []
        for level, places in enumerate(PLACES):
            x = f.max_pool2d(x, 2) if level else x
            for place in places:
                x = f.relu(f.conv2d(x, t[f"features.{place}.weight"], t[f"features.{place}.bias"], padding=1))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    levels = enumerate(zip(features(a), features(b)))
    return sum(f.conv2d((x - y).square(), t[f"lin{i}.model.1.weight"]).mean((1, 2, 3)) for i, (x, y) in levels)


def test_distances_and_their_gradient_are_torchs(weights):
    path, tensors = weights
    model, shapes = abstract()
    graphdef, params = nnx.graphdef(model), read_lpips(str(path), shapes)
    rng = np.random.default_rng(1)
    a, b = (
        jnp.asarray(rng.uniform(-1, 1, (1, 2, 37, 35, 3)), jnp.float32) for _ in range(2)
    )  # odd: poolings leave some out

    def measure(a, params):
        each = merge(graphdef, params)(a, b)
        return each.sum(), each

    (_, found), slope = jax.jit(jax.value_and_grad(measure, has_aux=True))(a, params)
    theirs = [torch.tensor(np.asarray(x[0]).transpose(0, 3, 1, 2)).requires_grad_() for x in (a, b)]
    expected = reference(tensors, *theirs)
    expected.sum().backward()
    np.testing.assert_allclose(found[0], expected.detach().numpy(), rtol=1e-4)
    gradient = theirs[0].grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(slope[0], gradient, atol=1e-4 * np.abs(gradient).max())


def test_the_network_and_the_heads_may_be_two_files(weights, tmp_path):
    path, tensors = weights
    for name, kind in (("vgg", "features"), ("heads", "lin")):
        save_file({k: v for k, v in tensors.items() if k.startswith(kind)}, tmp_path / f"{name}.safetensors")
    _, shapes = abstract()
    found = read_lpips(f"{tmp_path}/vgg.safetensors,{tmp_path}/heads.safetensors", shapes)
    for key, value in read_lpips(str(path), shapes).items():
        np.testing.assert_array_equal(found[key], value)


def test_files_that_do_not_do_are_refused_with_a_way_out(weights, tmp_path):
    _, shapes = abstract()
    (tmp_path / "vgg.pth").write_bytes(b"pickle")
    with pytest.raises(InputError, match="perceptual=nowhere does not exist: name a safetensors file with VGG16"):
        read_lpips("nowhere", shapes)
    with pytest.raises(InputError, match=r"vgg\.pth is no safetensors file: convert it with python -m vidjax\.convert"):
        read_lpips(str(tmp_path / "vgg.pth"), shapes)
    heads = {key: value for key, value in weights[1].items() if key.startswith("lin")}
    save_file(heads | {"features.1.weight": np.zeros(3, np.float32)}, tmp_path / "heads.safetensors")
    with pytest.raises(InputError, match=r"no key for parameter vgg\.convs\.0"):
        read_lpips(str(tmp_path / "heads.safetensors"), shapes)
