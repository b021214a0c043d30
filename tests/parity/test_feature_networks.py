"""I3D and InceptionV3 layer by layer against torch, on files of random weights in the published layouts."""

import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torch_fidelity") is None:
    pytest.skip("needs torch-fidelity", allow_module_level=True)

from safetensors.torch import save_file  # noqa: E402

from vidjax.metrics.resizing import bilinear  # noqa: E402
from vidjax.models.i3d import I3D  # noqa: E402
from vidjax.models.inception import InceptionV3  # noqa: E402
from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.weights import i3d, inception  # noqa: E402
from vidjax.weights.convert import load  # noqa: E402
from vidjax.weights.tensors import read  # noqa: E402

F = torch.nn.functional


def fidelity(name):
    """A module of torch-fidelity without its __init__, which wants torchvision."""
    if "torch_fidelity" not in sys.modules:
        package = types.ModuleType("torch_fidelity")
        package.__path__ = importlib.util.find_spec("torch_fidelity").submodule_search_locations
        sys.modules["torch_fidelity"] = package
    return importlib.import_module(f"torch_fidelity.{name}")


def random_norm(name, width, draw):
    """A batch norm's tensors; the variances are far from 1, so that the order of scaling and shifting shows."""
    return {
        f"{name}.weight": 1 + 0.3 * draw(width),
        f"{name}.bias": 0.3 * draw(width),
        f"{name}.running_mean": 0.3 * draw(width),
        f"{name}.running_var": 0.3 + draw(width).square(),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def saved_and_read(tensors, tmp_path):
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "w.safetensors")
    return read(tmp_path / "w.safetensors")


def error(got, expected):
    expected = np.moveaxis(expected.numpy(), 1, -1)
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def stages(model, x):
    """All layers' outputs by name, in order, compiled as one function."""
    names = []

    def outputs(x):
        found = dict(model.stages(x))
        names.extend(found)
        return list(found.values())

    values = jax.jit(outputs)(x)
    return dict(zip(names, values, strict=True))


def generator():
    seeded = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=seeded)


def test_inception(tmp_path):
    module = fidelity("feature_extractor_inceptionv3")
    blank = tmp_path / "blank.pth"
    stated = {}
    # The class loads its file when it is made: it is told to take none, then gets random weights in every tensor.
    original = module.FeatureExtractorInceptionV3.load_state_dict
    module.FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    try:
        torch.save({}, blank)
        reference = module.FeatureExtractorInceptionV3("any", ["2048", "logits_unbiased"], str(blank))
    finally:
        module.FeatureExtractorInceptionV3.load_state_dict = original
    draw = generator()
    for key, value in reference.state_dict().items():
        if key.endswith((".conv.weight", "fc.weight")):
            stated[key] = draw(*value.shape) * (2 / value[0].numel()) ** 0.5
        elif key.endswith("bn.weight"):
            stated |= random_norm(key.removesuffix(".weight"), len(value), draw)
    stated["fc.bias"] = draw(1008)
    reference.load_state_dict(stated)

    model = nnx.eval_shape(lambda: InceptionV3(rngs=OneKey()))
    load(model, saved_and_read(stated, tmp_path), inception.RULES, inception.UNUSED)
    x = draw(2, 3, 107, 123).clamp(-1, 1)
    got = stages(model, jnp.asarray(x.permute(0, 2, 3, 1).numpy()))
    names = [name for name, _ in reference.named_children() if name != "fc"]
    assert names == [name for name in got if name != "fc"]
    with torch.no_grad():
        for name in names:
            x = getattr(reference, name)(x)
            expected = x.flatten(1) if name == "AvgPool" else x
            assert error(got[name], expected) <= 1e-5, name
        assert error(got["fc"], x.flatten(1) @ reference.fc.weight.T) <= 1e-5


@pytest.mark.parametrize("height, width, size", [(5, 7, 12), (16, 9, 6), (4, 4, 4)])
def test_resizing(height, width, size):
    tensorflow = fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    x = generator()(2, 3, height, width)
    ours = jnp.asarray(x.permute(0, 2, 3, 1).numpy())
    theirs = tensorflow(x, (size, size), align_corners=False)
    assert error(bilinear(ours, size, half_pixels=False), theirs) <= 1e-6
    theirs = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    assert error(bilinear(ours, size, half_pixels=True), theirs) <= 1e-6


UNITS = {"Conv3d_1a_7x7": (3, 64, 7), "Conv3d_2b_1x1": (64, 64, 1), "Conv3d_2c_3x3": (64, 192, 3)}
WIDTHS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def i3d_tensors(draw):
    """A file as pytorch-i3d's are: its 344 keys."""
    shapes = dict(UNITS)
    for name, (cin, (b0, b1a, b1b, b2a, b2b, b3b)) in WIDTHS.items():
        branches = {"b0": (cin, b0, 1), "b1a": (cin, b1a, 1), "b1b": (b1a, b1b, 3)}
        branches |= {"b2a": (cin, b2a, 1), "b2b": (b2a, b2b, 3), "b3b": (cin, b3b, 1)}
        shapes |= {f"{name}.{branch}": shape for branch, shape in branches.items()}
    tensors = {}
    for name, (cin, cout, k) in shapes.items():
        tensors[f"{name}.conv3d.weight"] = draw(cout, cin, k, k, k) * (2 / (cin * k**3)) ** 0.5
        tensors |= random_norm(f"{name}.bn", cout, draw)
    tensors["logits.conv3d.weight"] = draw(400, 1024, 1, 1, 1) / 32
    tensors["logits.conv3d.bias"] = draw(400)
    return tensors


def i3d_by_torch(tensors, x):
    """Carreira & Zisserman 2017, figure 3, by the functions of torch: every layer's output by name."""

    def around(x, kernel, strides):
        """TensorFlow's "SAME": as many outputs as strides fit, the odd zero behind."""
        pads = []
        for n, k, s in reversed(list(zip(x.shape[2:], kernel, strides))):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)

    def unit(x, name, stride=1):
        weight = tensors[f"{name}.conv3d.weight"]
        y = F.conv3d(around(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        mean, var, w, b = (tensors[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(y, mean, var, w, b, eps=1e-3))

    def pool(x, kernel, strides):
        return F.max_pool3d(around(x, kernel, strides), kernel, strides)

    def mixed(x, name):
        one, two = (unit(unit(x, f"{name}.b{i}a"), f"{name}.b{i}b") for i in (1, 2))
        return torch.cat([unit(x, f"{name}.b0"), one, two, unit(pool(x, (3,) * 3, (1,) * 3), f"{name}.b3b")], 1)

    order = [("Conv3d_1a_7x7", lambda x, name: unit(x, name, 2))]
    order += [("MaxPool3d_2a_3x3", lambda x, _: pool(x, (1, 3, 3), (1, 2, 2)))]
    order += [("Conv3d_2b_1x1", unit), ("Conv3d_2c_3x3", unit)]
    order += [("MaxPool3d_3a_3x3", lambda x, _: pool(x, (1, 3, 3), (1, 2, 2)))]
    order += [("Mixed_3b", mixed), ("Mixed_3c", mixed)]
    order += [("MaxPool3d_4a_3x3", lambda x, _: pool(x, (3, 3, 3), (2, 2, 2)))]
    order += [(f"Mixed_4{i}", mixed) for i in "bcdef"]
    order += [("MaxPool3d_5a_2x2", lambda x, _: pool(x, (2, 2, 2), (2, 2, 2)))]
    order += [("Mixed_5b", mixed), ("Mixed_5c", mixed)]
    for name, layer in order:
        x = layer(x, name)
        yield name, x
    x = F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)
    yield "AvgPool", x[..., 0, 0]
    logits = F.conv3d(x, tensors["logits.conv3d.weight"], tensors["logits.conv3d.bias"])
    yield "logits", logits[..., 0, 0]


@pytest.fixture(scope="module")
def read_i3d(tmp_path_factory):
    tensors = i3d_tensors(generator())
    assert len(tensors) == 344
    model = nnx.eval_shape(lambda: I3D(rngs=OneKey()))
    load(model, saved_and_read(tensors, tmp_path_factory.mktemp("i3d")), i3d.RULES, i3d.BUFFERS)
    return model, tensors


def test_i3d(read_i3d):
    model, tensors = read_i3d
    x = generator()(1, 3, 9, 70, 64).clamp(-1, 1)
    got = stages(model, jnp.asarray(x.permute(0, 2, 3, 4, 1).numpy()))
    with torch.no_grad():
        expected = dict(i3d_by_torch(tensors, x))
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert error(got[name], value) <= 1e-5, name


def test_i3d_is_the_mean_over_time(read_i3d):
    model, tensors = read_i3d
    x = generator()(1, 3, 18, 32, 41).clamp(-1, 1)
    got = jax.jit(lambda x: model(x))(jnp.asarray(x.permute(0, 2, 3, 4, 1).numpy()))
    with torch.no_grad():
        expected = dict(i3d_by_torch(tensors, x))["logits"]
    assert expected.shape[2] == 2
    assert error(got, expected.mean(2)) <= 1e-5
