"""The U-Net of LFDM's diffusion files against torch's own operations on a state dict in the released layout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from lfdm_layout import SMALL, draw, layout

from vidjax.errors import InputError
from vidjax.models.flow_unet import FlowUNet, FlowUNetConfig, find_buckets
from vidjax.models.keys import OneKey
from vidjax.models.parameters import abstract_parameters, merge, parameters
from vidjax.weights import lfdm_unet

torch = pytest.importorskip("torch")
F = torch.nn.functional


class Theirs:
    """What the network computes, in torch's functions on the layout's names."""

    def __init__(self, state, config):
        self.state, self.config, self.heads = state, config, config.heads

    def get(self, name):
        return self.state.get(f"denoise_fn.{name}")

    def conv(self, name, x, stride=1, padding=None):
        weight = self.get(f"{name}.weight")
        half = weight.shape[-1] // 2 if padding is None else padding
        return F.conv3d(x, weight, self.get(f"{name}.bias"), (1, stride, stride), (0, half, half))

    def linear(self, name, x):
        return F.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"))

    def block(self, name, x, emb=None):
        h = F.group_norm(self.conv(f"{name}.block1.proj", x), 8, *self.norm(f"{name}.block1.norm"))
        if emb is not None:
            scale, shift = self.linear(f"{name}.mlp.1", F.silu(emb))[:, :, None, None, None].chunk(2, 1)
            h = h * (scale + 1) + shift
        h = F.silu(F.group_norm(self.conv(f"{name}.block2.proj", F.silu(h)), 8, *self.norm(f"{name}.block2.norm")))
        return h + (x if self.get(f"{name}.res_conv.weight") is None else self.conv(f"{name}.res_conv", x))

    def norm(self, name):
        return self.get(f"{name}.weight"), self.get(f"{name}.bias")

    def attention(self, name, x, kind):
        gamma = self.get(f"{name}.fn.norm.gamma")
        h = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() * gamma
        t, height, width = h.shape[2:]
        inside = f"{name}.fn.fn" if kind == "linear" else f"{name}.fn.fn.fn"
        weight = self.get(f"{inside}.to_qkv.weight").flatten(1)
        h = h.permute(0, 3, 4, 2, 1) if kind == "time" else h.permute(0, 2, 3, 4, 1).flatten(2, 3)
        split = lambda a: a.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
        q, k, v = map(split, (h @ weight.T).chunk(3, -1))
        if kind == "linear":
            h = (q.softmax(-1) * q.shape[-1] ** -0.5) @ (k.softmax(-2).transpose(-1, -2) @ v)
        else:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            if kind == "time":
                turn = self.turn(t, self.get(f"{inside}.rotary_emb.freqs"))
                scores = turn(q) @ turn(k).transpose(-1, -2) * q.shape[-1] ** -0.5 + self.bias(t)
            h = scores.softmax(-1) @ v
        h = h.transpose(-2, -3).flatten(-2) @ self.get(f"{inside}.to_out.weight").flatten(1).T
        bias = self.get(f"{inside}.to_out.bias")
        h = h if bias is None else h + bias
        if kind == "time":
            return x + h.permute(0, 4, 3, 1, 2)
        return x + h.unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)

    def turn(self, t, freqs):
        """Features 2 i and 2 i + 1 as a complex number, times exp(sqrt(-1) place freqs[i])."""
        by = torch.polar(torch.ones(1), torch.arange(t)[:, None] * freqs)
        return lambda a: torch.view_as_real(torch.view_as_complex(a.unflatten(-1, (-1, 2)).contiguous()) * by).flatten(
            -2
        )

    def bias(self, t):
        """T5's buckets by their definition, place by place."""
        table = self.get("time_rel_pos_bias.relative_attention_bias.weight")

        def bucket(ahead):
            n = abs(ahead)
            wide = 8 + int(math.log(max(n, 1) / 8) / math.log(4) * 8)
            return (16 if ahead > 0 else 0) + (n if n < 8 else min(wide, 15))

        index = torch.tensor([[bucket(key - query) for key in range(t)] for query in range(t)])
        return table[index].permute(2, 0, 1)

    def level(self, name, x, emb):
        x = self.block(f"{name}.1", self.block(f"{name}.0", x, emb), emb)
        return self.attention(f"{name}.3", self.attention(f"{name}.2", x, "linear"), "time")

    def __call__(self, x, time, vector):
        half, last = self.config.channels[0] // 2, len(self.config.channels) - 1
        angles = time[:, None] * torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
        emb = F.gelu(self.linear("time_mlp.1", torch.cat([angles.sin(), angles.cos()], 1)))
        emb = torch.cat([self.linear("time_mlp.3", emb), vector], 1)
        first = self.conv("init_conv", x)
        x, skips = self.attention("init_temporal_attn", first, "time"), []
        for i in range(last + 1):
            x = self.level(f"downs.{i}", x, emb)
            skips.append(x)
            x = self.conv(f"downs.{i}.4", x, 2, 1) if i < last else x
        x = self.attention("mid_spatial_attn", self.block("mid_block1", x, emb), "space")
        x = self.block("mid_block2", self.attention("mid_temporal_attn", x, "time"), emb)
        for i in range(last + 1):
            x = self.level(f"ups.{i}", torch.cat([x, skips.pop()], 1), emb)
            if i < last and self.config.transposed:
                name = f"ups.{i}.4"
                kernel, bias = self.norm(name)
                x = F.conv_transpose3d(x, kernel, bias, (1, 2, 2), (0, 1, 1))
            elif i < last:
                x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
                x = self.conv(f"ups.{i}.4.1", F.pad(x, (1, 1, 1, 1, 0, 0), "reflect"), 1, 0)
        x = torch.cat([x, first], 1)
        return torch.cat([self.conv(f"{name}.1", self.block(f"{name}.0", x)) for name in lfdm_unet.OUTPUTS], 1)


def abstract(config):
    model = nnx.eval_shape(lambda: FlowUNet(config, rngs=OneKey()))
    return model, {path: value.shape for path, value in abstract_parameters(model).items()}


@pytest.mark.parametrize("transposed, count", [(True, 42_731_219), (False, 42_129_875 - 768)])
def test_every_key_of_the_released_layout_has_its_place(transposed, count):
    """At full size, by shapes alone; the released counts, NATOPS's without its null condition."""
    config = FlowUNetConfig(transposed=transposed)
    empty = {f"module.{key}": np.broadcast_to(np.float32(0), shape) for key, shape in layout(config).items()}
    assert lfdm_unet.config_of(empty, "file") == config
    _, shapes = abstract(config)
    assert lfdm_unet.parameters(shapes, empty).keys() == shapes.keys()
    assert sum(math.prod(shape) for shape in shapes.values()) == count


@pytest.fixture(scope="module", params=[True, False], ids=["transposed", "reflected"])
def pair(request):
    """The config, a file, and for both networks what they make of the same, with a weighted sum's gradients."""
    config = FlowUNetConfig(**SMALL, transposed=request.param)
    tensors = draw(config)
    assert lfdm_unet.config_of(tensors, "file") == config
    model, shapes = abstract(config)
    params = {path: jnp.asarray(value) for path, value in lfdm_unet.parameters(shapes, tensors).items()}
    graphdef, state = nnx.split(merge(nnx.graphdef(model), params))
    rng = np.random.default_rng(1)
    x, vector = rng.standard_normal((2, 10, 8, 4, 9), np.float32), rng.standard_normal((2, 12), np.float32)
    weights, time = rng.standard_normal((2, 10, 8, 4, 3), np.float32), np.array([3.0, 700.0], np.float32)

    def total(state, x):
        out = nnx.merge(graphdef, state)(x, jnp.repeat(time[:, None], 10, 1), vector=jnp.asarray(vector))
        return (out * weights).sum(), out

    (own, own_x), out = jax.jit(jax.grad(total, (0, 1), has_aux=True))(state, jnp.asarray(x))
    leaves = {key: torch.tensor(value, requires_grad=True) for key, value in tensors.items()}
    inputs = torch.tensor(x).permute(0, 4, 1, 2, 3).requires_grad_(True)
    theirs = Theirs(leaves, config)(inputs, torch.tensor(time), torch.tensor(vector)).permute(0, 2, 3, 4, 1)
    (theirs * torch.tensor(weights)).sum().backward()
    slopes = {
        key: np.zeros(leaf.shape, np.float32) if leaf.grad is None else leaf.grad.numpy()
        for key, leaf in leaves.items()
    }
    slopes = lfdm_unet.parameters(shapes, slopes) | {"x": inputs.grad.permute(0, 2, 3, 4, 1).numpy()}
    own = {path: np.asarray(value[...]) for path, value in parameters(nnx.merge(graphdef, own)).items()}
    return params, tensors, (np.asarray(out), theirs.detach().numpy()), (own | {"x": np.asarray(own_x)}, slopes)


def apart(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def test_the_network_is_theirs(pair):
    assert apart(*pair[2]) < 1e-5


def test_its_gradients_are_theirs_and_the_rotation_has_none(pair):
    own, slopes = pair[3]
    assert not own.pop("frequencies").any()
    assert max(apart(own[path], slopes[path]) for path in own) < 1e-4


def test_a_file_goes_out_as_it_came_in(pair):
    params, tensors = pair[:2]
    out = lfdm_unet.tensors(params, tensors)
    assert list(out) == list(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(out[key], value)
    with pytest.raises(InputError, match=r"no parameter for key denoise_fn\.downs\.9"):
        lfdm_unet.tensors(params, {"denoise_fn.downs.9.0.block1.proj.weight": tensors["betas"]})


def test_distances_are_told_apart_near_by_and_by_direction():
    found = find_buckets(60)
    assert found[0, 0] == 0 and len(set(found[10, 3:18])) == 15
    assert (found[0, 32:] == found[0, 59]).all() and (found[32:, 0] == found[59, 0]).all()
    assert found.max() < 32 and not set(found[np.triu_indices(60, 1)]) & set(found[np.tril_indices(60)])


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(images=1), "takes none, set data.images=0"),
        (dict(vector=jnp.zeros((1, 3))), "conditions of 3 features; the U-Net was built with 12"),
        (dict(x=jnp.zeros((1, 2, 5, 4, 9))), "multiples of 2"),
        (dict(remat="some"), "remat='some' is not known"),
    ],
)
def test_what_it_was_not_built_for_is_refused(change, says):
    model, _ = abstract(FlowUNetConfig(**SMALL))
    given = dict(x=jnp.zeros((1, 2, 4, 4, 9)), vector=jnp.zeros((1, 12))) | change
    with pytest.raises(InputError, match=says):
        model(given.pop("x"), jnp.zeros((1, 2)), **given)
    for numbers in (dict(head_dim=3), dict(channels=(2, 4), groups=2), dict(channels=(5,), groups=5)):
        with pytest.raises(InputError, match="sines and cosines share them"):
            FlowUNetConfig(**numbers)
    with pytest.raises(InputError, match=r"file has no key .*init_conv\.weight: it is no diffusion of LFDM's"):
        lfdm_unet.config_of({"betas": np.zeros(3)}, "file")
