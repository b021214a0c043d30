"""One U-Net: the counts of its families, what a video model owes to its image model, and equal routes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidjax.errors import InputError
from vidjax.models.keys import OneKey
from vidjax.models.unet import REMAT, Temporal, UNet, UNetConfig

SKY = dict(
    channels=(256, 512, 768, 1024),
    blocks_per_level=3,
    attention_levels=(False, True, True, True),
    heads=4,
    tokens_dim=None,
    norm_over="clip",
    scale_shift=True,
    attention="plain",
    block="lvdm",
    reach=4,
    transposed=True,
)
LVDM_TEXT = dict(block="lvdm_text", norm_over="clip", attention_norm_over="clip")
TINY = dict(in_channels=3, out_channels=3, channels=(8,), blocks_per_level=1, attention_levels=True, groups=4, heads=2)
TWO_LEVELS = TINY | dict(channels=(8, 16), attention_levels=(False, True))


def build(**config):
    return UNet(UNetConfig(**config), rngs=nnx.Rngs(0))


def shapes(**config):
    model = nnx.eval_shape(lambda: UNet(UNetConfig(**config), rngs=OneKey()))
    state = nnx.state(model, nnx.Param)
    return {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}


def count(tree):
    return sum(math.prod(shape) for shape in tree.values())


def filled(model, scale=0.3):
    graph, params = nnx.split(model)
    random = np.random.default_rng(0)
    return graph, jax.tree.map(lambda a: a + jnp.asarray(scale * random.standard_normal(a.shape, "f")), params)


def inputs(b=2, t=4, size=(6, 4), tokens=5):
    keys = jax.random.split(jax.random.key(1), 4)
    x = jax.random.normal(keys[0], (b, t, *size, 3))
    times = jax.random.uniform(keys[1], (b, t), maxval=1000.0)
    return x, times, jax.random.normal(keys[2], (b, tokens, 6)), jax.random.normal(keys[3], (b, 5))


def test_counts_and_inflation():
    """Stable Diffusion 1.5 and Tune-A-Video: image parameters are among the video's, the others are named temporal."""
    image, video = shapes(), shapes(block="tuned")
    assert count(image) == 859_520_964
    assert count(video) == 909_120_004
    assert image.items() <= video.items()
    assert all("temp" in path for path in video.keys() - image.keys())


@pytest.mark.parametrize("config, expected", [(SKY, 548_904_580), (LVDM_TEXT, 958_924_964)], ids=["sky", "text"])
def test_counts_of_lvdm(config, expected):
    assert count(shapes(**config)) == expected


@pytest.mark.parametrize(
    "video",
    [
        dict(block=(("attn1", "frame"), ("attn2", "tokens"), ("ff", "ff"), ("attn_temp", "zero_time"))),
        dict(after_resnet="convs", after_attention=dict(heads=(2,), levels=(True,)), stem_heads=(2, 4)),
    ],
    ids=["inside", "after"],
)
def test_an_inflated_model_is_the_image_model_frame_by_frame(video):
    graph, params = filled(build(**TINY, tokens_dim=6))
    inflated = build(**TINY, tokens_dim=6, **video)
    leaves = dict(nnx.to_flat_state(nnx.state(inflated, nnx.Param)))
    known = dict(nnx.to_flat_state(params))
    assert known.keys() < leaves.keys()
    for path, value in known.items():
        leaves[path].set_value(value[...])
    x, t, tokens, _ = inputs()
    apply = jax.jit(lambda x, t, tokens: nnx.merge(graph, params)(x, t, tokens))
    frames = apply(x.reshape(8, 1, *x.shape[2:]), t.reshape(8, 1), jnp.repeat(tokens, 4, 0))
    whole = jax.jit(lambda *a: inflated(*a))(x, t, tokens)
    np.testing.assert_allclose(whole, frames.reshape(x.shape), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "video",
    [
        TWO_LEVELS
        | dict(block="lvdm_text", norm_over="clip", attention_norm_over="clip", positions=True, after_resnet="convs")
        | dict(blocks_per_level=0, channels=(8, 8)),
        TINY | dict(block="vdm", attention="plain", scale_shift=True, blocks_per_level=0),
    ],
    ids=["lvdm_text", "vdm"],
)
def test_stills_beside_a_video_are_clips_of_their_own(video):
    graph, params = filled(build(**video, tokens_dim=6))
    x, t, tokens, _ = inputs(size=(5, 3))  # an odd map
    apply = jax.jit(
        lambda x, t, tokens, images: nnx.merge(graph, params)(x, t, tokens, images=images), static_argnums=3
    )
    joint = apply(x, t, tokens, 2)
    stills = apply(x[:, 2:].reshape(4, 1, 5, 3, 3), t[:, 2:].reshape(4, 1), jnp.repeat(tokens, 2, 0), 0)
    apart = jnp.concatenate([apply(x[:, :2], t[:, :2], tokens, 0), stills.reshape(2, 2, 5, 3, 3)], 1)
    np.testing.assert_allclose(joint, apart, rtol=1e-4, atol=1e-4)
    changed = apply(x.at[:, 0].add(1.0), t, tokens, 2)
    np.testing.assert_array_equal(changed[:, 2:], joint[:, 2:])
    assert not np.allclose(changed[:, 1], joint[:, 1], atol=1e-2)


def test_remat_changes_nothing():
    block = (("attn2", "tokens"), ("attn_temp", "relative_time"))
    config = TINY | dict(blocks_per_level=0, tokens_dim=6, vector_dim=5, block=block, positions=True)
    graph, params = filled(build(**config))
    x, t, tokens, vector = inputs()
    mask = jnp.arange(5)[None] < jnp.array([[2], [5]])

    def route(remat):
        def loss(params):
            out = nnx.merge(graph, params)(x, t, tokens, vector, token_mask=mask, remat=remat)
            return jnp.square(out).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    plain = route("none")
    for remat in REMAT.keys() - {"none"}:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), route(remat), plain)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(plain[1]))  # every parameter takes part


def test_patches_are_what_the_inner_network_sees():
    x, t, *_ = inputs(size=(6, 4))
    patched = build(**TINY | dict(patch=2, tokens_dim=None))
    graph, params = filled(patched)
    inner, _ = nnx.split(build(**TINY | dict(in_channels=12, out_channels=12, tokens_dim=None)))
    blocks = x.reshape(2, 4, 3, 2, 2, 2, 3).transpose(0, 1, 2, 4, 3, 5, 6).reshape(2, 4, 3, 2, 12)
    ours = jax.jit(lambda x: nnx.merge(graph, params)(x, t))(x)
    theirs = jax.jit(lambda x: nnx.merge(inner, params)(x, t))(blocks)
    theirs = theirs.reshape(2, 4, 3, 2, 2, 2, 3).transpose(0, 1, 2, 4, 3, 5, 6).reshape(x.shape)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="patches of 2"):
        patched(x[:, :, :5], t)


def test_bfloat16_stays():
    graph, params = filled(build(**TINY, tokens_dim=6, vector_dim=5, block="lvdm_text", positions=True))
    half = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
    x, t, tokens, vector = inputs()
    out = jax.eval_shape(lambda p: nnx.merge(graph, p)(half(x), t, half(tokens), half(vector)), half(params))
    assert out.dtype == jnp.bfloat16


def test_the_forms_of_a_config_file_are_the_written_out_ones():
    short = UNetConfig(channels=[8, 16], attention_levels=True, heads=2, groups=4, block="spatial", tokens_dim=None,
                       after_attention=dict(heads=[2, 2], levels=[True, False]))  # fmt: skip
    long = UNetConfig(channels=(8, 16), attention_levels=(True, True), heads=(2, 2), groups=4, tokens_dim=None,
                      block=(("attn1", "frame"), ("ff", "ff")),
                      after_attention=Temporal((2, 2), (True, False)))  # fmt: skip
    assert short == long and hash(short) == hash(long)


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(channels=(8, 18)), "channels=18 cannot be split into groups=4"),
        (dict(heads=3), "channels=8 cannot be split into heads=3"),
        (dict(heads=(2, 2, 2)), "one entry for each of the 1 channels"),
        (dict(block="lvmd"), "'lvmd' is not known"),
        (dict(block=(("attn1", "fame"),)), "kind 'fame'"),
        (dict(block=(("ff", "ff"), ("ff", "ff"))), "twice"),
        (dict(attention="linear"), "attention='linear'"),
        (dict(border=3), "border=3: must be at least 1 and at most 2"),
        (dict(free_u=((1.1,),)), r"free_u=\(\(1.1,\),\) must be pairs"),
        (dict(free_u=((1.0, 1.0),) * 3), "at most the 2 of the way up"),
    ],
)
def test_numbers_that_do_not_fit(config, message):
    with pytest.raises(InputError, match=message):
        UNetConfig(**(TINY | config))


def test_conditions_that_the_model_lacks():
    model = nnx.eval_shape(lambda: build(**TINY, tokens_dim=6))
    x, t, tokens, vector = inputs()
    for args, more, message in [
        ((None, None), {}, "without tokens"),
        ((tokens[..., :4], None), {}, "tokens have 4 features"),
        ((tokens, vector), {}, "vector have 5 features"),
        ((tokens, None), dict(images=5), "images=5"),
        ((tokens, None), dict(remat="some"), "remat='some'"),
    ]:
        with pytest.raises(InputError, match=message):
            model(x, t, *args, **more)
