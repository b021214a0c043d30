"""What each strategy trains, on the paths of real models; what it must leave alone; what a frozen part costs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vidjax.errors import InputError
from vidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from vidjax.models.keys import OneKey
from vidjax.models.parameters import abstract_parameters, parameters, split
from vidjax.models.unet import Temporal, UNet, UNetConfig
from vidjax.models.video_model import Codec, VideoModel
from vidjax.training.state import TrainState
from vidjax.training.step import make_train_step
from vidjax.training.strategies import STRATEGIES, describe, strategy

TINY = dict(channels=(8,), blocks_per_level=1, attention_levels=True, groups=4, heads=2, tokens_dim=6)
AUTOENCODER = dict(patch=(1, 2, 2), latent_channels=4, channels=(8,), blocks=(1,), decoder_blocks=(1,), groups=4)


class Speaker(nnx.Module):
    """A text encoder as far as names go."""

    def __init__(self):
        for name in ("attn1", "to_q", "q_proj"):
            setattr(self, name, nnx.Linear(6, 6, rngs=OneKey()))


def unet(block="tuned", **more):
    return UNet(UNetConfig(**TINY, block=block, **more), rngs=OneKey())


def whole():
    codec = Codec(Autoencoder(AutoencoderConfig(**AUTOENCODER), rngs=OneKey()))
    return VideoModel(UNetConfig(**TINY, block="tuned"), {"text": Speaker()}, codec, rngs=OneKey())


def chosen(make, name, **options):
    """Shapes of what trains, by path, after the surgery."""
    tune = strategy(name, **options)

    def operated():
        model = make()
        tune.surgery(model, OneKey())
        return model

    return split(abstract_parameters(nnx.eval_shape(operated)), tune.trainable)[0]


def size(params):
    return sum(math.prod(value.shape) for value in params.values())


def test_tune_a_video_trains_what_the_released_code_trains():
    params = chosen(lambda: UNet(UNetConfig(block="tuned"), rngs=OneKey()), "tune_a_video")
    assert size(params) == 74_354_880
    assert {path.split(".blocks.0.")[1] for path in params} == {
        "attn1.to_q.kernel",
        "attn2.to_q.kernel",
        *(f"attn_temp.to_{name}.kernel" for name in ("q", "k", "v", "out")),
        "attn_temp.to_out.bias",
    }


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("temporal_decoder", "autoencoder")])
def test_the_codec_never_trains_and_the_text_encoder_when_asked(name):
    small = {"rank": 2} if "lora" in name else {}
    for text in (False, True):
        tops = {path.split(".")[0] for path in chosen(whole, name, text=text, **small)}
        assert tops == ({"unet", "text"} if text else {"unet"})


def test_the_temporal_decoder_starts_as_the_decoder_of_frames():
    rngs = nnx.Rngs(0)
    config = AutoencoderConfig(**AUTOENCODER, kernels=((3, 3), (3, 3)), linear=False)
    codec = Codec(Autoencoder(config, rngs=rngs))
    z = jax.random.normal(jax.random.key(0), (1, 3, 4, 4, 4))
    decode = jax.jit(lambda codec, z: codec.decode(z))
    before = decode(codec, z)
    strategy("temporal_decoder").surgery(codec, rngs)
    np.testing.assert_allclose(decode(codec, z), before, atol=1e-5)
    assert codec.per_frame("encoder") and not codec.per_frame("decoder")
    kernel = codec.autoencoder.decoder.up[0].resnet_0.conv1.kernel
    kernel[...] = kernel[...].at[0].set(0.1)  # the frame before
    changed = np.abs(decode(codec, z.at[:, 0].add(1)) - decode(codec, z)).max((0, 2, 3, 4)) > 1e-4
    assert changed.tolist() == [True, True, False]
    with pytest.raises(InputError, match="cannot be made to look over time"):
        codec.autoencoder.decoder.up[0].resnet_0.conv1.look_over_time()


def test_adapters_leave_the_text_encoder_itself_alone():
    for name in ("lora", "appearance_lora", "motion_lora"):
        text = {path for path in chosen(whole, name, rank=2, text=True) if path.startswith("text.")}
        assert text == {"text.q_proj.lora_down", "text.q_proj.lora_up"}
    assert strategy("lora", text=True).text and not strategy("lora").text and strategy("full").text


def test_the_temporal_decoder_is_all_that_trains():
    params = chosen(whole, "temporal_decoder")
    assert params and all(path.startswith("codec.autoencoder.") for path in params)
    ends = {path.split(".")[2] for path in params}
    assert ends == {"decoder", "linear_out"}
    alone = chosen(lambda: Autoencoder(AutoencoderConfig(**AUTOENCODER), rngs=OneKey()), "temporal_decoder")
    assert {f"codec.autoencoder.{path}" for path in alone} == params.keys()


def test_temporal_trains_what_a_video_has_over_an_image():
    after = Temporal(heads=(2,), levels=(True,))
    make = lambda: unet("spatial", after_attention=after, after_resnet="convs", stem_heads=(2, 4))
    image = abstract_parameters(nnx.eval_shape(lambda: unet("spatial")))
    assert chosen(make, "temporal").keys() == abstract_parameters(nnx.eval_shape(make)).keys() - image.keys()


def test_motion_and_appearance_adapt_disjoint_layers():
    after = Temporal(heads=(2,), levels=(True,))
    make = lambda: unet("blend", after_attention=after)
    layers = lambda name: {path.rpartition(".")[0] for path in chosen(make, name, rank=2)}
    motion, appearance = layers("motion_lora"), layers("appearance_lora")
    over_time = lambda layer: "temp" in layer
    assert all(map(over_time, motion)) and not any(map(over_time, appearance))
    assert {layer.split(".blocks.0.")[1] for layer in appearance} == {
        *(f"attn1.to_{name}" for name in ("q", "k", "v", "out")),
        "ff.proj_in",
        "ff.proj_out",
    }
    assert {
        layer.rpartition("temporal_attention.blocks.0.")[2] for layer in motion if "temporal_attention" in layer
    } == {
        *(f"attn{i}.to_{name}" for i in (1, 2) for name in ("q", "k", "v", "out")),
        "ff.proj_in",
        "ff.proj_out",
    }


def test_tuning_one_adapter_leaves_another_in_place():
    appearance, motion = strategy("appearance_lora", rank=2), strategy("motion_lora", rank=2)

    def both():
        model = whole()
        appearance.surgery(model, OneKey())
        motion.surgery(model, OneKey())
        return model

    params, frozen = split(abstract_parameters(nnx.eval_shape(both)), motion.trainable)
    assert all("lora" in path and "attn_temp" in path for path in params)
    assert sum("lora" in path for path in frozen) == 2 * 4 * 6  # down and up, four stages, six layers


def test_unknown_names_and_options_name_the_right_ones():
    with pytest.raises(InputError, match="finetune strategy 'tune_video' is not known; did you mean 'tune_a_video'"):
        strategy("tune_video")
    with pytest.raises(InputError, match=r"config\.finetune\.ranks does not exist; did you mean 'rank'"):
        strategy("lora", ranks=4)
    with pytest.raises(InputError, match="no parameter is trainable"):
        chosen(lambda: unet("spatial"), "temporal")


def test_the_table_counts_every_parameter_once():
    params = chosen(unet, "tune_a_video")
    *rows, total = (line.split() for line in describe(params).splitlines())
    number = lambda text: int(text.replace(",", ""))
    assert [number(total[0]), number(total[1])] == [len(params), size(params)]
    assert [sum(number(row[i]) for row in rows) for i in (0, 1)] == [len(params), size(params)]
    assert ["2", "128", "up.*.attention.blocks.*.attn1.to_q.kernel"] in rows  # two stages of 8 x 8


@functools.cache
def tuned(frozen_dtype, steps=3):
    """(before, after) a few steps towards noise, on a U-Net with no parameter at zero."""
    random = np.random.default_rng(0)
    model = UNet(UNetConfig(**TINY, block="tuned"), rngs=nnx.Rngs(0))
    for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf.set_value(leaf[...] + jnp.asarray(0.1 * random.standard_normal(leaf.shape, "f")))
    optimizer = optax.adamw(1e-3)
    state = TrainState.create(model, optimizer, strategy("tune_a_video").trainable, frozen_dtype=frozen_dtype)

    def objective(model, batch, draws):
        x = batch["x"]
        return jnp.square(model(x, jnp.full(x.shape[:2], 9.0), batch["tokens"]) - draws.normal(x.shape[1:])).mean(), {}

    keys = jax.random.split(jax.random.key(0))
    batch = {"x": jax.random.normal(keys[0], (1, 3, 4, 4, 4)), "tokens": jax.random.normal(keys[1], (1, 2, 6))}
    step, before = jax.jit(make_train_step(objective, optimizer, seed=0)), state
    for _ in range(steps):
        state, metrics = step(state, batch)
    return before, state, metrics["loss"]


@pytest.mark.parametrize("frozen_dtype", [None, "bfloat16"])
def test_tuning_changes_what_trains_and_not_one_bit_of_the_rest(frozen_dtype):
    before, after, _ = tuned(frozen_dtype)
    assert before.frozen.keys() == after.frozen.keys() and before.params.keys() == after.params.keys()
    assert {value.dtype for value in after.frozen.values()} == {jnp.dtype(frozen_dtype or "float32")}
    for path, value in before.frozen.items():
        assert np.asarray(value).tobytes() == np.asarray(after.frozen[path]).tobytes()
    assert all(np.any(before.params[path] != value) for path, value in after.params.items())
    assert {value.dtype for value in after.params.values()} == {jnp.dtype("float32")}
    moments = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * size(after.params)  # two moments each, none for the frozen


def test_a_bf16_frozen_part_costs_its_rounding_alone():
    exact, rounded = tuned(None), tuned("bfloat16")
    assert 0 < abs(float(rounded[2]) / float(exact[2]) - 1) < 2**-7
    model = rounded[1].model()
    assert {value.dtype for value in parameters(model).values()} == {jnp.dtype("float32")}
