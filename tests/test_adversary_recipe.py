"""A recipe with discriminators: resumed exactly, and later stages see nothing of them."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from vidjax import settings
from vidjax.errors import InputError
from vidjax.models.parameters import abstract_parameters, split
from vidjax.recipes import build as recipe
from vidjax.recipes.frozen import frozen_parts
from vidjax.recipes.run import Run
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.loop import train
from vidjax.training.stage import abstract_loss

CRITIC = dict(channels=4, layers=1, groups=2)
TINY = Path(__file__).with_name("tiny.py")


def against(**more) -> dict:
    made = settings.plain(runpy.run_path(str(TINY))["get_config"]("latent"))
    stage = made["stages"]["autoencoder"]
    stage["train"] = {**stage["train"], "sample_every": None, "steps": 4}
    stage["optimizer"] = {**stage["optimizer"], "groups": dict(discriminator=dict(learning_rate=1e-3))}
    made["stages"]["autoencoder"] = {**stage, "discriminator": {"frame": CRITIC}, "loss": dict(start=1), **more}
    return made


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "autoencoder" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    train(recipe.build(against(), "autoencoder", workdir))
    return workdir


def test_the_adversary_acts_from_its_first_step_on(trained):
    told = [line["discriminator"] for line in metrics(trained)]
    assert told[0] == 0 and all(value > 0 for value in told[1:])


def test_a_stage_with_an_adversary_goes_on_exactly(trained, tmp_path):
    for steps in (2, None):
        train(recipe.build(against(), "autoencoder", tmp_path, max_steps=steps))
    figures = ("step", "loss", "discriminator", "adversary", "adaptive_weight", "grad_norm")
    found, expected = ([[line[name] for name in figures] for line in metrics(at)] for at in (tmp_path, trained))
    assert found == expected


def test_later_stages_see_an_autoencoder_alone(trained):
    stage = recipe.build(against(), "diffusion", trained)
    _, frozen = split(abstract_parameters(abstract_loss(stage)[1]), stage.trainable)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    frozen = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding) for k, v in frozen.items()}
    codec = frozen_parts({"source": "autoencoder"}, trained).parameters(frozen)
    assert codec.keys() == {path for path in frozen if path.startswith("codec.")}
    (trained / "config.json").write_text(json.dumps(against()))
    exported = Run(trained).generator("autoencoder").params
    assert {f"codec.autoencoder.{path}" for path in exported} == codec.keys()
    for path, value in exported.items():
        np.testing.assert_array_equal(value, codec[f"codec.autoencoder.{path}"])
    assert (trained / "autoencoder" / "latents.json").exists()


def test_a_checkpoint_of_another_discriminator_is_named(trained):
    other = recipe.build(against(discriminator={"frame": dict(CRITIC, channels=8)}), "autoencoder", trained)
    with pytest.raises(InputError, match=r"of another model: discriminator\.frame"):
        recipe.check(other)
    with Checkpoints(trained / "autoencoder" / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 4


@pytest.mark.parametrize(
    "more, says",
    [
        (dict(perceptual="vgg.pth"), "perceptual=vgg.pth does not exist"),
        (dict(discriminator={"frame": dict(layer=1)}), "did you mean 'layers'"),
        (dict(discriminator={"frames": CRITIC}), "discriminators of .'frames'. do not exist"),
        (dict(discriminator={"frame": dict(layers=3)}), "at least 24 pixels"),
        (dict(discriminator={}, loss={}), "groups.discriminator: no parameter"),
        (dict(loss=dict(reduction="summ")), "did you mean 'sum'"),
    ],
)
def test_what_does_not_fit_fails_before_anything_is_compiled(more, says, tmp_path):
    with pytest.raises(InputError, match=says) as caught:
        recipe.check(recipe.build(against(**more), "autoencoder", tmp_path))
    assert "\n" not in str(caught.value)
