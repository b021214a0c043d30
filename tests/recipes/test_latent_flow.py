"""LFDM as a user runs it, tiny: both stages, a finished run's samples, and a picture of one's own that moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lfdm_layout import draw
from PIL import Image
from safetensors.numpy import save_file
from starts import program
from test_configs import config
from tiny_flow import random_model

from vidjax.data.transforms import to_unit
from vidjax.errors import InputError
from vidjax.models.flow_unet import FlowUNetConfig
from vidjax.models.parameters import abstract_parameters
from vidjax.recipes import build as recipe
from vidjax.recipes.latent_flow import flow_statistics, released_diffusion
from vidjax.recipes.run import train

BIAS = "time_rel_pos_bias.relative_attention_bias.weight"


def tiny(**data) -> dict:
    made = config("lfdm:shapes")
    made["data"] = made["data"] | dict(frames=3, size=16) | data
    made["flow"] = made["flow"] | dict(regions=2, width=8, region_width=8, widest=16, blocks=1, groups=4)
    made["conditioning"]["text"] = dict(dim=16, layers=1, heads=2, length=32)
    made["model"] = dict(channels=(16,), blocks_per_level=0, attention_levels=False, heads=2, groups=4, block="vdm")
    for stage in made["stages"].values():
        stage["train"] = stage["train"] | dict(steps=2, batch_size=2, log_every=1)
        stage["loss"] = dict(scales=(1, 2)) if stage["objective"] == "flow_autoencoder" else {}
    made["sample"] = dict(num_steps=2)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tiny(), str(tmp_path_factory.mktemp("lfdm") / "run"))


def test_flow_has_zero_mean_once_the_autoencoder_is_trained(run):
    """By what finish has measured: over the windows that training sees, those at the start, each channel."""
    generator, dataset = run.generator(), run.dataset()
    z = np.asarray(generator.encode(np.concatenate(dataset.windows("train", per_clip=1))))
    assert z.shape[-1] == 3
    np.testing.assert_allclose(z.mean((0, 1, 2, 3)), 0, atol=1e-3)


def test_statistics_give_what_varies_unit_variance():
    """The two directions together, occlusion by itself."""
    model, clips = random_model(), np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    measured = flow_statistics(model, [clips], {})
    z = (np.asarray(jax.jit(model.encode)(to_unit(jnp.asarray(clips)))) + measured["shift"]) * measured["scale"]
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


def test_buckets_are_shapes_that_both_networks_halve(tmp_path):
    """Two frames or more, as it learns from pairs; 8 pixels: the autoencoder's hourglasses halve three times, the
    U-Net's two levels the flow once."""
    made = tiny(buckets=3, size=32)
    made["flow"]["blocks"] = 2
    for name, multiple in dict(flow_autoencoder=(2, 8), diffusion=(1, 8)).items():
        assert recipe.build(made, name, tmp_path).data.limits.multiple == multiple


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


def test_tiles_are_refused(tmp_path):
    """A pixel may come from anywhere in the first frame."""
    made = tiny()
    made["sample"] |= dict(tile=(2, 4, 4))
    with pytest.raises(InputError, match=r"config\.sample\.tile=.*leave it out"):
        recipe.build(made, "diffusion", tmp_path).start(False)


def test_frames_are_decoded_some_at_a_time(run):
    """Each is its own warp of the first: as all at once."""
    generator, picture = run.generator(), np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    latents = np.random.default_rng(1).standard_normal((1, 6, 8, 8, 3)).astype(np.float32)
    some, whole = (generator.decode(latents, count, pictures=picture) for count in (None, 6))
    np.testing.assert_allclose(some.astype(int), whole, atol=1)


def with_released_unet(tmp_path) -> tuple[dict, dict[str, np.ndarray]]:
    """A recipe whose diffusion is read from a file, of random weights in the released layout, and the file."""
    made = tiny()
    made["flow"] |= dict(unit=False)
    made["conditioning"] = dict(label=dict(classes=3, dim=12))
    made["model"] = dict(network="flow_unet", channels=(16, 32), heads=2)
    tensors = draw(FlowUNetConfig(in_channels=3 + 16, channels=(16, 32), heads=2, vector_dim=12))
    tensors["class_vectors"] = np.random.default_rng(5).standard_normal((3, 12), np.float32)
    made["stages"]["diffusion"]["pretrained"] = str(tmp_path / "diffusion.safetensors")
    save_file(tensors, tmp_path / "diffusion.safetensors")
    return made, tensors


def test_a_released_diffusion_is_read(tmp_path):
    """Every parameter of the U-Net, the class vectors, and after them the condition for no class."""
    made, tensors = with_released_unet(tmp_path)
    stage = recipe.build(made, "diffusion", tmp_path)
    params = abstract_parameters(stage.abstract())
    file = made["stages"]["diffusion"]["pretrained"]
    found = released_diffusion(params, file, "pretrained")
    assert {path for path in params if not path.startswith("codec.")} == found.keys()
    np.testing.assert_array_equal(found["unet.time_bias.embedding"], tensors[f"denoise_fn.{BIAS}"])
    np.testing.assert_array_equal(found["label.table.embedding"][:3], tensors["class_vectors"])
    np.testing.assert_array_equal(found["label.table.embedding"][3:], tensors["denoise_fn.null_cond_emb"])
    save_file({key: tensors[key] for key in tensors if key != "class_vectors"}, tmp_path / "without.safetensors")
    with pytest.raises(InputError, match=r"lacks the tensor class_vectors of shape \(3, 12\), it has none"):
        released_diffusion(params, str(tmp_path / "without.safetensors"), "pretrained")
