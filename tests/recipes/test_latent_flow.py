"""LFDM as a user runs it, tiny: both stages, a finished run's samples, and a picture of one's own that moves."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from starts import program
from test_configs import config
from tiny_flow import random_model

from vidjax.data.transforms import to_unit
from vidjax.errors import InputError
from vidjax.recipes import build as recipe
from vidjax.recipes.latent_flow import flow_statistics
from vidjax.recipes.run import train


def tiny(**data) -> dict:
    made = config("lfdm:shapes")
    made["data"] = made["data"] | dict(frames=3, size=16) | data
    made["flow"] = made["flow"] | dict(regions=2, width=8, region_width=8, widest=16, blocks=1, groups=4)
    made["conditioning"]["text"] = dict(dim=16, layers=1, heads=2, length=32)
    made["model"] = dict(channels=(16,), blocks_per_level=0, attention_levels=True, heads=2, groups=4, block="vdm")
    for stage in made["stages"].values():
        stage["train"] = stage["train"] | dict(steps=2, batch_size=2, log_every=1)
        stage["loss"] = dict(scales=(1, 2)) if stage["objective"] == "flow_autoencoder" else {}
    made["sample"] = dict(num_steps=2)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tiny(), str(tmp_path_factory.mktemp("lfdm") / "run"))


def test_flow_has_zero_mean_once_the_autoencoder_is_trained(run):
    """By what finish has measured: over the training's windows, each channel."""
    generator, dataset = run.generator(), run.dataset()
    z = np.asarray(generator.encode(np.concatenate(dataset.windows("train"))))
    assert z.shape[-1] == 3
    np.testing.assert_allclose(z.mean((0, 1, 2, 3)), 0, atol=1e-3)


def test_statistics_give_what_varies_unit_variance():
    """The two directions together, occlusion by itself."""
    model, clips = random_model(), np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    measured = flow_statistics(model, [clips], {})
    z = (np.asarray(model.encode(to_unit(jnp.asarray(clips)))) + measured["shift"]) * measured["scale"]
    np.testing.assert_allclose(z.mean((0, 1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose([z[..., :2].var(), z[..., 2].var()], 1, rtol=1e-4)
    assert measured["scale"][0] == measured["scale"][1]


def test_a_picture_moves(run):
    """It is needed; a video of it depends on it, and on the caption through the flow alone."""
    generator = run.generator()
    assert set(generator.embedder_names) == {"text", "picture"}
    pictures = np.stack([np.full((16, 16, 3), 200, np.uint8), np.full((16, 16, 3), 20, np.uint8)])
    pictures[:, 4:8, 4:8] = 120
    made = generator(["a", "a"], pictures=pictures)
    assert made.shape == (2, 3, 16, 16, 3) and np.abs(made[0].astype(int) - made[1]).max() > 0
    with pytest.raises(InputError, match="moves a picture and has none: give it one, --image"):
        generator(["a"])


def test_latents_and_pictures_make_the_video(run):
    """What `sample` does in two steps is what a call does in one."""
    generator, picture = run.generator(), np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    latents = generator.latents(["a"], pictures=picture, seed=3)
    assert latents.shape == (1, 3, 8, 8, 3)
    np.testing.assert_array_equal(
        generator.decode(latents, pictures=picture), generator(["a"], pictures=picture, seed=3)
    )


def test_as_a_user_runs_it(run, env, tmp_path):
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "picture.png")
    told = [
        "--image",
        str(tmp_path / "picture.png"),
        "--prompt",
        "a red circle moves left",
        "--out",
        str(tmp_path / "out"),
    ]
    made = program("sample", "--workdir", str(run.workdir), *told, env=env)
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1


@pytest.mark.parametrize(
    "sections, says",
    [
        (dict(data=dict(size=18)), "multiples of 4"),
        (dict(data=dict(frames=1)), "pairs of frames"),
        (dict(flow=dict(region=2)), "did you mean 'regions'"),
        (dict(flow=dict(norm="layer")), "config.flow.norm 'layer' is not known"),
        (dict(flow=dict(groups=5)), "groups=5"),
    ],
)
def test_what_does_not_fit_is_refused(sections, says, tmp_path):
    made = tiny()
    for section, values in sections.items():
        made[section] |= values
    with pytest.raises(InputError, match=says):
        recipe.build(made, "flow_autoencoder", tmp_path)
