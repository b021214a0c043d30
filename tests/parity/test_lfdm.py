"""LFDM's flow autoencoder against torch's own operations on a state dict in the released layout, of random weights."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity.gradients import check_gradients
from safetensors.numpy import load_file

from vidjax.errors import InputError
from vidjax.models.flow_autoencoder import FlowAutoencoder, FlowConfig
from vidjax.models.keys import OneKey
from vidjax.models.parameters import abstract_parameters, merge, parameters
from vidjax.models.warping import resize_linear, sample_grid
from vidjax.weights import lfdm

torch = pytest.importorskip("torch")
F = torch.nn.functional

SMALL = FlowConfig(
    regions=3, width=8, region_width=4, widest=32, blocks=2, bottleneck=2, pad=3, norm="batch", corners=True,
    smallest=0.0, offset=False,
)  # fmt: skip


@pytest.mark.parametrize("reflect", [False, True])
def test_sampling_and_scaling_are_torch_s(reflect):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 9, 3), np.float32)
    grid = rng.uniform(-1.6, 1.6, (2, 5, 6, 2)).astype(np.float32)
    nchw = torch.tensor(x).permute(0, 3, 1, 2)
    mode = "reflection" if reflect else "zeros"
    theirs = F.grid_sample(nchw, torch.tensor(grid), padding_mode=mode, align_corners=False).permute(0, 2, 3, 1)
    np.testing.assert_allclose(sample_grid(jnp.asarray(x), jnp.asarray(grid), reflect), theirs, atol=2e-5)
    theirs = F.interpolate(nchw, size=(14, 27), mode="bilinear").permute(0, 2, 3, 1)
    np.testing.assert_allclose(resize_linear(jnp.asarray(x), (14, 27)), theirs, atol=1e-5)


def layout(config: FlowConfig) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a released file."""
    made: dict[str, tuple[int, ...]] = {}

    def conv(name, cin, cout, size):
        made[f"{name}.weight"], made[f"{name}.bias"] = (cout, cin, size, size), (cout,)

    def norm(name, dim):
        made.update({f"{name}.{part}": (dim,) for part in ("weight", "bias", "running_mean", "running_var")})
        made[f"{name}.num_batches_tracked"] = ()

    def block(name, cin, cout, size=3):
        conv(f"{name}.conv", cin, cout, size)
        norm(f"{name}.norm", cout)

    def encoder(name, cin, width):
        dims = [cin] + [min(config.widest, width * 2 ** (i + 1)) for i in range(config.blocks)]
        for i in range(config.blocks):
            block(f"{name}.down_blocks.{i}", dims[i], dims[i + 1])

    def hourglass(name, cin, width):
        encoder(f"{name}.encoder", cin, width)
        dims = [min(config.widest, width * 2**i) for i in range(config.blocks + 1)]
        for place, i in enumerate(reversed(range(config.blocks))):
            block(f"{name}.decoder.up_blocks.{place}", dims[i + 1] * (2 if place else 1), dims[i])
        return width + cin

    flow, k, w = "generator.pixelwise_flow_predictor", config.regions, config.width
    out = hourglass(f"{flow}.hourglass", 4 * (k + 1), w)
    conv(f"{flow}.mask", out, k + 1, 7)
    conv(f"{flow}.occlusion", out, 1, 7)
    made[f"{flow}.down.weight"] = made["region_predictor.down.weight"] = (3, 1, 13, 13)
    block("generator.first", 3, w, 7)
    for i in range(config.levels):
        block(f"generator.down_blocks.{i}", w * 2**i, w * 2 ** (i + 1))
        block(f"generator.up_blocks.{i}", w * 2 ** (config.levels - i), w * 2 ** (config.levels - i - 1))
    for i in range(config.bottleneck):
        for n in (1, 2):
            conv(f"generator.bottleneck.r{i}.conv{n}", 4 * w, 4 * w, 3)
            norm(f"generator.bottleneck.r{i}.norm{n}", 4 * w)
    conv("generator.final", w, 3, 7)
    conv("region_predictor.regions", hourglass("region_predictor.predictor", 3, config.region_width), k, 7)
    encoder("bg_predictor.encoder", 6, config.region_width)
    made["bg_predictor.fc.weight"], made["bg_predictor.fc.bias"] = (6, config.region_width * 2**config.blocks), (6,)
    return made


def abstract(config):
    model = nnx.eval_shape(lambda: FlowAutoencoder(config, rngs=OneKey()))
    return model, {path: value.shape for path, value in abstract_parameters(model).items()}


def test_every_key_of_the_released_layout_has_its_place():
    """At full size, by shapes alone: numbers that no memory holds; and without statistics the released count."""
    config = dataclasses.replace(SMALL, regions=10, width=64, region_width=32, widest=1024, blocks=5, bottleneck=6)
    keys = layout(config)
    empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    _, shapes = abstract(config)
    assert lfdm.parameters(shapes, empty).keys() == shapes.keys()
    trained = {key for key in keys if not key.endswith(("running_mean", "running_var", "tracked", "down.weight"))}
    assert sum(math.prod(keys[key]) for key in trained) == 66_004_557


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A safetensors file that torch's own was converted to, with a state of the optimizer beside the networks."""
    rng, tensors = np.random.default_rng(0), {}
    for key, shape in layout(SMALL).items():
        value = rng.standard_normal(shape, np.float32)
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        if key.endswith("running_var"):
            value = 0.5 + np.abs(value)
        elif key.endswith("tracked"):
            value = np.int64(7)
        elif key.endswith("down.weight"):
            value = np.broadcast_to(blur(), shape)
        else:
            value = value * np.float32(1.5 / math.sqrt(fan) if fan > 1 else 0.3)
        tensors[key] = torch.tensor(np.array(value))
    tensors["bg_predictor.fc.bias"] += torch.tensor([1.0, 0, 0, 0, 1, 0])
    parts = {part[:-1]: {k[len(part) :]: v for k, v in tensors.items() if k.startswith(part)} for part in lfdm.PARTS}
    folder = tmp_path_factory.mktemp("lfdm")
    torch.save({"example": 100, "epoch": 1, **parts}, folder / "RegionMM.pth")
    from safetensors.numpy import save_file

    from vidjax.weights.torch_files import Tensors

    found = Tensors(folder / "RegionMM.pth")
    save_file({key: np.ascontiguousarray(value) for key, value in found.items()}, folder / "mug.safetensors")
    return folder / "mug.safetensors", tensors


def blur():
    """The 13 x 13 Gaussian of deviation 1.5 for a quarter of the size."""
    line = np.exp(-(np.arange(-6, 7) ** 2) / (2 * 1.5**2))
    return (np.outer(line, line) / line.sum() ** 2).astype(np.float32)


class Theirs:
    """The networks as the facts describe them, on a state dict."""

    def __init__(self, tensors):
        self.p = tensors

    def block(self, name, x, pad):
        return torch.relu(self.norm(f"{name}.norm", self.conv(f"{name}.conv", x, pad)))

    def conv(self, name, x, pad):
        return F.conv2d(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"], padding=pad)

    def norm(self, name, x):
        mean, variance, weight, bias = (
            self.p[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, training=False)

    def encoder(self, name, x):
        found = [x]
        for i in range(SMALL.blocks):
            found.append(F.avg_pool2d(self.block(f"{name}.down_blocks.{i}", found[-1], 1), 2))
        return found

    def hourglass(self, name, x):
        beside = self.encoder(f"{name}.encoder", x)
        x = beside.pop()
        for i in range(SMALL.blocks):
            x = self.block(f"{name}.decoder.up_blocks.{i}", F.interpolate(x, scale_factor=2), 1)
            x = torch.cat([x, beside.pop()], 1)
        return x

    def small(self, x):
        return F.conv2d(F.pad(x, (6, 6, 6, 6)), torch.tensor(blur()).expand(3, 1, 13, 13), groups=3)[..., ::4, ::4]

    def places(self, h, w):
        y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        return torch.stack([x, y], -1)

    def regions(self, x):
        heat = self.conv("region_predictor.regions", self.hourglass("region_predictor.predictor", self.small(x)), 3)
        n, k, h, w = heat.shape
        heat = torch.softmax(heat.reshape(n, k, -1) / 0.1, -1)
        places = self.places(h, w).reshape(-1, 2)
        center = heat @ places
        away = places - center[:, :, None]
        covariance = torch.einsum("nkp,nkpd,nkpe->nkde", heat, away, away)
        u, s, _ = torch.svd(covariance)
        return center, u @ torch.diag_embed(s.sqrt()), covariance

    def flow(self, source, driving):
        (c_s, a_s, v_s), (c_d, a_d, v_d) = self.regions(source), self.regions(driving)
        pooled = self.encoder("bg_predictor.encoder", torch.cat([source, driving], 1))[-1].mean((2, 3))
        background = F.linear(pooled, self.p["bg_predictor.fc.weight"], self.p["bg_predictor.fc.bias"]).view(-1, 2, 3)
        small = self.small(source)
        n, _, h, w = small.shape
        places = self.places(h, w)
        affine = a_s @ torch.inverse(a_d)
        affine = affine * torch.sign(affine[..., :1, :1])
        moved = torch.einsum("nkde,nkhwe->nkhwd", affine, places - c_d[:, :, None, None]) + c_s[:, :, None, None]
        behind = torch.einsum("nde,hwe->nhwd", background[:, :, :2], places) + background[:, None, None, :, 2]
        candidates = torch.cat([behind[:, None], moved], 1)

        def heat(center, covariance):
            away = places - center[:, :, None, None]
            return torch.exp(-0.5 * torch.einsum("nkhwd,nkde,nkhwe->nkhw", away, torch.inverse(covariance), away))

        heats = torch.cat([torch.zeros(n, 1, h, w), heat(c_d, v_d) - heat(c_s, v_s)], 1)
        parts = []
        for k in range(candidates.shape[1]):
            parts += [heats[:, k : k + 1], F.grid_sample(small, candidates[:, k], align_corners=False)]
        name = "generator.pixelwise_flow_predictor"
        features = self.hourglass(f"{name}.hourglass", torch.cat(parts, 1))
        weights = torch.softmax(self.conv(f"{name}.mask", features, 3), 1)
        grid = torch.einsum("nkhw,nkhwd->nhwd", weights, candidates)
        return grid, torch.sigmoid(self.conv(f"{name}.occlusion", features, 3))

    def paint(self, source, grid, occlusion):
        features = [self.block("generator.first", source, 3)]
        for i in range(SMALL.levels):
            features.append(F.avg_pool2d(self.block(f"generator.down_blocks.{i}", features[-1], 1), 2))

        def shown(x):
            size = x.shape[2:]
            places = F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode="bilinear").permute(0, 2, 3, 1)
            return F.grid_sample(x, places, align_corners=False), F.interpolate(occlusion, size=size, mode="bilinear")

        moved, seen = shown(features[-1])
        x = moved * seen
        for i in range(SMALL.bottleneck):
            h, name = x, f"generator.bottleneck.r{i}"
            for n in (1, 2):
                h = self.conv(f"{name}.conv{n}", torch.relu(self.norm(f"{name}.norm{n}", h)), 1)
            x = x + h
        for i in range(SMALL.levels):
            moved, seen = shown(features[-1 - i])
            x = moved * seen + x * (1 - seen)
            x = self.block(f"generator.up_blocks.{i}", F.interpolate(x, scale_factor=2), 1)
        moved, seen = shown(features[0])
        x = torch.sigmoid(self.conv("generator.final", moved * seen + x * (1 - seen), 3))
        moved, seen = shown(source)
        return moved * seen + x * (1 - seen)


@pytest.fixture(scope="module")
def both(file):
    path, tensors = file
    made, shapes = abstract(SMALL)
    params = lfdm.parameters(shapes, lfdm.open_file(path, "pretrained"))
    model = merge(nnx.graphdef(made), {key: jnp.asarray(value) for key, value in params.items()})
    return model, Theirs(tensors)


def test_flow_occlusion_and_picture_are_torch_s(both):
    """The whole way, of a clip of two frames, the first of which is the source."""
    model, theirs = both
    x = np.random.default_rng(3).random((2, 2, 32, 32, 3), np.float32)
    source, driving = (torch.tensor(x[:, i]).permute(0, 3, 1, 2) for i in range(2))
    grid, occlusion = theirs.flow(source, driving)
    painted = theirs.paint(source, grid, occlusion)
    z = jax.jit(lambda x: model.encode(2 * x - 1))(x)[:, 1]
    np.testing.assert_allclose(z[..., :2], grid, atol=5e-4 * np.abs(grid).max())
    np.testing.assert_allclose(z[..., 2:], 2 * occlusion.permute(0, 2, 3, 1) - 1, atol=1e-3)
    exact = jnp.concatenate([jnp.asarray(grid), 2 * jnp.asarray(occlusion).transpose(0, 2, 3, 1) - 1], -1)[:, None]
    ours = jax.jit(lambda z, first: model.decode(z, 2 * first - 1))(exact, x[:, 0])[:, 0]
    np.testing.assert_allclose((ours + 1) / 2, painted.permute(0, 2, 3, 1), atol=1e-4)


def test_its_gradients_are_torch_s(both):
    """Of every parameter that is in both, through flow, occlusion and picture; the statistics of norms stay."""
    model, theirs = both
    x, weight = (np.random.default_rng(seed).random((1, 2, 32, 32, 3), np.float32) for seed in (3, 4))
    graphdef, state = nnx.split(model)

    def total(state):
        own = nnx.merge(graphdef, state)
        clip = jnp.asarray(2 * x - 1)
        return (own.decode(own.encode(clip), clip[:, 0])[:, 1] * weight[:, 1]).sum() / 2

    slopes = {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(jax.jit(jax.grad(total))(state))}
    leaves = {key: value.float().requires_grad_("running_" not in key) for key, value in theirs.p.items()}
    other = Theirs(leaves)
    source, driving = (torch.tensor(x[:, i]).permute(0, 3, 1, 2) for i in range(2))
    painted = other.paint(source, *other.flow(source, driving))
    (painted * torch.tensor(weight[:, 1]).permute(0, 3, 1, 2)).sum().backward()
    found = {key: np.zeros(v.shape, "f") if v.grad is None else v.grad.numpy() for key, v in leaves.items()}
    expected = lfdm.parameters({path: value.shape for path, value in slopes.items()}, found)
    rounding = "regions.heat.bias"  # a softmax over the frame follows: what one region adds everywhere changes nothing
    trained = [path for path in expected if not path.endswith((".mean", ".variance", rounding))]
    check_gradients(*({path: values[path] for path in trained} for values in (slopes, expected)))


def test_a_file_goes_out_as_it_came_in(file, both):
    path, model = file[0], both[0]
    source = load_file(path)
    out = lfdm.tensors({path: np.asarray(value[...]) for path, value in parameters(model).items()}, source)
    assert out.keys() == source.keys()
    for key, value in source.items():
        np.testing.assert_array_equal(out[key], value, err_msg=key)
        assert out[key].shape == value.shape and out[key].dtype == value.dtype
    with pytest.raises(InputError, match=r"no parameter for key generator\.first\.more"):
        lfdm.tensors({}, {"generator.first.more": np.zeros(1)})


def test_what_does_not_fit_is_refused_in_one_line(file):
    source, key = load_file(file[0]), "generator.first.conv.weight"
    _, shapes = abstract(SMALL)
    for change, says in (
        ({key: None}, "no key for parameter generator.conv_in.conv.kernel"),
        ({key: None, key + "s": source[key]}, f"no parameter for key {key}s"),
        ({key: np.zeros((3, 3))}, r"generator.first.conv.weight has shape \(3, 3\)"),
    ):
        found = {k: v for k, v in {**source, **change}.items() if v is not None}
        with pytest.raises(InputError, match=says) as raised:
            lfdm.parameters(shapes, found)
        assert "\n" not in str(raised.value)


def test_other_files_and_settings_are_refused(file, tmp_path):
    with pytest.raises(InputError, match=r"-m vidjax\.convert"):
        pth = tmp_path / "a.pth"
        pth.write_bytes(b"")
        lfdm.open_file(pth, "pretrained")
    with pytest.raises(InputError, match="does not exist"):
        lfdm.open_file(tmp_path / "b.safetensors", "pretrained")
    with pytest.raises(InputError, match=r"config\.flow\.norm='batch'"):
        lfdm.check_config(FlowConfig(), "mug.safetensors")
