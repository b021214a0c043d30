"""Cascades: what a stage is shown in training is what it gets in sampling; a run, and what cannot be one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from starts import program
from test_configs import ROOT, config

from vidjax import settings
from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.transforms import to_uint8, to_unit
from vidjax.data.video_reading import Video
from vidjax.diffusion.draws import draws_at
from vidjax.diffusion.refinement import Refinement
from vidjax.diffusion.schedule import cosine, cosine_between
from vidjax.errors import InputError
from vidjax.generation import cascade
from vidjax.generation.cascade import Cascade
from vidjax.generation.generator import Generator
from vidjax.generation.options import SampleConfig
from vidjax.generation.pictures import resize_linear
from vidjax.generation.sampling import lowres_conditions
from vidjax.models.conditioning import embed
from vidjax.models.lowres import LowresEmbedder
from vidjax.models.parameters import parameters
from vidjax.models.unet import UNetConfig
from vidjax.models.video_model import VideoModel
from vidjax.recipes import build as recipe
from vidjax.recipes.config import stage_names
from vidjax.recipes.run import Run
from vidjax.training import objectives

SCHEDULE = cosine(steps=None)
REFINEMENT = Refinement(cosine(), 699)
FACTORS = {"temporal": dict(time_factor=2), "spatial": dict(space_factor=4)}


def lowres(**options) -> LowresEmbedder:
    return LowresEmbedder(of="base", rngs=nnx.Rngs(0), **options)


def draws(count):
    return draws_at(jax.random.key(0), jnp.int32(3), count)


class Copying(nnx.Module):
    """A network that takes the video it should make larger for the answer."""

    def __init__(self):
        self.conv_in = nnx.Module()
        self.conv_in.kernel = nnx.Param(jnp.zeros(1))

    def __call__(self, x, t, tokens, vector, *, token_mask, images, remat):
        return x[..., 3:]


def generator(network=None, size=(4, 8, 8), prediction="x0", refinement=None, **factors) -> Generator:
    embedders = {"lowres": lowres(**factors)} if factors else {}
    more = dict(vector_dim=64, in_channels=6) if factors else dict(in_channels=3)
    unet = dict(channels=(8,), blocks_per_level=0, attention_levels=False, heads=2, groups=4, block=(), out_channels=3)
    model = VideoModel(UNetConfig(tokens_dim=None, **unet, **more), embedders, rngs=nnx.Rngs(0))
    if network is not None:
        model.unet = network
    random = np.random.default_rng(0)
    params = {path: v + 0.1 * random.standard_normal(v.shape, np.float32) for path, v in parameters(model).items()}
    how = SampleConfig(num_steps=2, lowres_level=0.0)
    schedule = cosine_between(used=700) if refinement else SCHEDULE
    return Generator(nnx.graphdef(model), params, schedule, prediction, None, size, 3, how, refinement=refinement)


def some(*shape):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_what_copies_gives_back_the_frames_it_was_given():
    video = some(2, 2, 8, 8)
    made = generator(Copying(), time_factor=2)(["", ""], lowres=video)
    np.testing.assert_array_equal(made[:, ::2], video)
    np.testing.assert_array_equal(made[:, 1::2], video)
    flat = np.broadcast_to(some(1, 4, 1, 1), (1, 4, 2, 2, 3))  # bilinear: a field of one colour stays one
    made = generator(Copying(), space_factor=4)([""], lowres=flat)
    np.testing.assert_array_equal(made, np.broadcast_to(flat[:, :, :1, :1], made.shape))


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
def test_what_only_adds_starts_as_plain_enlargement(factors):
    """Of the given pixels; under noise of what is most likely below it, which is nothing where only noise is left."""
    made = generator(residual=True, **factors)
    made.params = {path: 0 * value for path, value in made.params.items()}
    embedder = cascade.embedder(made)
    video = np.asarray(to_uint8(embedder.shrink(jnp.asarray(to_unit(some(2, 4, 8, 8))))))
    plain = np.asarray(to_uint8(embedder.enlarge(jnp.asarray(to_unit(video)))))
    np.testing.assert_array_equal(made(["", ""], lowres=video), plain)
    lost = made(["", ""], lowres=video, lowres_level=1.0)
    assert np.abs(lost.astype(int) - 128).max() <= 1


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("level", [0.0, 0.3, 0.9])
def test_the_smaller_video_is_under_the_noise_that_the_network_is_told(factors, level):
    embedder = lowres(**factors)
    x0, t = jnp.asarray(to_unit(some(64, 4, 8, 8))), jnp.full(64, level)
    low = embedder.shrink(x0)
    said = embedder.noised(SCHEDULE, low, t, jax.random.normal(jax.random.key(0), low.shape))
    np.testing.assert_allclose(said["level"], 1000 * level)
    noise = np.asarray(said["video"] - SCHEDULE.alpha(t[0]) * low)
    variance = float(SCHEDULE.sigma(t[0])) ** 2
    assert abs((noise**2).mean() - variance) <= 4 * variance * (2 / noise.size) ** 0.5
    one, other = (embedder({**said, "level": jnp.full(64, at)})["vector"] for at in (0.0, 900.0))
    assert np.abs(one - other).max() > 0.5


def test_in_training_the_level_is_random_up_to_its_bound():
    x0 = jnp.asarray(to_unit(some(256, 4, 8, 8)))
    levels = np.asarray(lowres(time_factor=2, max_level=0.4).draw(SCHEDULE, x0, 0, draws(256))["level"]) / 1000
    assert 0 <= levels.min() < 0.02 and 0.38 < levels.max() <= 0.4
    clean = lowres(time_factor=2, max_level=0.0).draw(SCHEDULE, x0, 0, draws(256))["video"]
    np.testing.assert_array_equal(clean, x0[:, ::2])


def test_a_stage_between_frames_trains_on_what_the_base_is_trained_to_make():
    """The same frames of the shipped clips, of the same pixels."""
    made = config("imagen_video:clips")
    own, low = (
        make_dataset(DataConfig(**settings.stage_settings(made, name)["data"]), seed=0) for name in ("temporal", "base")
    )
    one, other = (np.concatenate(data.windows("heldout", per_clip=1)) for data in (own, low))
    embedder = lowres(time_factor=2, max_level=0.0)
    shown = to_uint8(embedder.draw(SCHEDULE, jnp.asarray(to_unit(one)), 0, draws(8))["video"])
    np.testing.assert_array_equal(shown, other)


def test_smaller_pictures_are_those_of_the_stage_before_but_for_the_filter():
    made = config("imagen_video:clips")
    large, small = (
        make_dataset(DataConfig(**settings.stage_settings(made, name)["data"]), seed=0)
        for name in ("spatial", "temporal")
    )
    large, small = (np.concatenate(data.windows("heldout", per_clip=1)) for data in (large, small))
    shrunk = np.asarray(to_uint8(lowres(space_factor=4).shrink(jnp.asarray(to_unit(large)))))
    assert np.abs(shrunk.astype(int) - small).mean() < 4


def test_a_model_that_reads_the_smaller_video_has_no_loss_on_it():
    """The objective shows each clip its own: frames that it has are predicted without error, others are not."""
    clips = {"video": jnp.asarray(some(8, 4, 4, 4))}

    class Model:
        def __init__(self):
            self.embedders = {"lowres": lowres(time_factor=2, max_level=0.0)}

        def latents(self, video, normal=None):
            return to_unit(video)

        def __call__(self, x, t, cond, images=0):
            right = jnp.arange(4)[None, :, None, None, None] % 2 == 0
            return jnp.where(right, cond.concat, to_unit(clips["video"]))

    loss, _ = objectives.diffusion(Model(), clips, draws(8), schedule=SCHEDULE, prediction="x0")
    assert float(loss) < 1e-9


def test_stills_have_no_frames_between_them_but_pixels():
    x0 = jnp.asarray(to_unit(some(4, 6, 8, 8)))
    with pytest.raises(InputError, match="2 stills have no frames between them"):
        lowres(time_factor=2).draw(SCHEDULE, x0, 2, draws(4))
    said = lowres(space_factor=2, max_level=0.0).draw(SCHEDULE, x0, 2, draws(4))["video"]
    alone = lowres(space_factor=2, max_level=0.0).draw(SCHEDULE, x0[:, 4:], 0, draws(4))["video"]
    np.testing.assert_allclose(said[:, 4:], alone, atol=1e-6)


def test_a_cascade_asks_each_of_its_generators_for_what_the_next_makes_larger():
    base = generator(size=(2, 4, 4), prediction="v")
    middle = generator(size=(4, 4, 4), prediction="v", time_factor=2)
    last = generator(size=(4, 8, 8), prediction="v", space_factor=2)
    whole, done = Cascade([base, middle, last]), []
    video = whole(["", ""], seed=5, progress=lambda n: done.append(int(n)))
    all_videos = list(whole.videos(["", ""], seed=5))
    assert [v.shape[1:4] for v in all_videos] == [(2, 4, 4), (4, 4, 4), (4, 8, 8)]
    np.testing.assert_array_equal(all_videos[-1], video)
    np.testing.assert_array_equal(all_videos[0], base(["", ""], seed=5))
    np.testing.assert_array_equal(all_videos[1], middle(["", ""], seed=5, lowres=all_videos[0]))
    np.testing.assert_array_equal(Cascade([base])(["", ""], seed=5), all_videos[0])
    assert sorted(done) == [1, 2, 3, 4, 5, 6] and whole.num_steps(num_steps=7) == 21
    assert np.abs(video.astype(int) - whole(["", ""], seed=5, lowres=255 - all_videos[1])).max() > 2  # it is looked at


def test_what_is_asked_of_the_last_generator_alone_leaves_the_others_as_they_are():
    base, last = generator(size=(2, 4, 4), prediction="v"), generator(size=(4, 4, 4), prediction="v", time_factor=2)
    whole, noise = Cascade([base, last]), last.noise(1, seed=3)
    low = base([""], seed=2, num_steps=1)
    np.testing.assert_array_equal(
        whole.latents([""], seed=2, num_steps=1, noise=noise),
        last.latents([""], seed=2, num_steps=1, noise=noise, lowres=low),
    )


def test_no_two_noises_of_a_cascade_are_the_same():
    base = generator(size=(4, 8, 8))
    above = generator(size=(8, 8, 8), time_factor=2)
    (_, one), (_, other) = base._start(1, (4, 8, 8, 3), 0), above._start(1, (8, 8, 8, 3), 0)
    alike = lambda a, b: abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])
    assert alike(one, other[:, :4]) < 0.1
    keys, start = above._start(1, (8, 8, 8, 3), 0)
    grey = np.full((1, 4, 8, 8, 3), 128, np.uint8)
    under = lowres_conditions(SCHEDULE, cascade.embedder(above), grey, (8, 8, 8, 3), keys, 0.99)["lowres"]["video"]
    assert max(alike(under, noise) for noise in (start[:, :4], start[:, ::2], one)) < 0.1


def test_times_of_a_refinement():
    """31 steps back in strides of 23, the last cut off at 699; 30 forth, the last to clean data."""
    back, forth = REFINEMENT.inversion_times(30), REFINEMENT.times(30, clean=-1.0)
    assert (len(back), back[0], back[1], *back[-2:]) == (32, 0, 23, 690, 699)
    np.testing.assert_allclose([len(forth), *forth[:2], *forth[-2:]], [31, 699, 699 - 700 / 31, 44 + 5 / 31, -1])
    for steps in (1, 40, 60, 400, 700):
        strides = np.diff(REFINEMENT.inversion_times(steps))
        assert len(strides) >= steps and sum(strides) == 699 and set(strides[:-1]) <= {strides[0]} >= {max(strides)}
    with pytest.raises(InputError, match=r"num_steps is 701; it must lie in 1\.\.700"):
        REFINEMENT.inversion_times(701)


def test_a_finished_video_is_made_larger_whatever_its_size():
    """Its own size is that of the model before; the way back is counted among the steps, and the video is looked at."""
    base, last = generator(size=(2, 4, 6), prediction="v"), generator(prediction="v", refinement=REFINEMENT)
    whole, done = Cascade([base, last]), []
    low, video = whole.videos([""], frames=2, seed=5, progress=lambda n: done.append(int(n)))
    assert (low.shape[1:4], video.shape[1:4]) == ((2, 4, 6), (2, 8, 8))
    np.testing.assert_array_equal(low, base([""], seed=5))
    assert sorted(done) == [1, 2, 3, 4, 5, 6] and whole.num_steps() == 6
    other = last([""], frames=2, seed=5, lowres=255 - low)
    assert np.abs(video.astype(int) - other).max() > 2
    done.clear()
    for call in (whole.latents, lambda *given, **how: next(whole.videos(*given, **how))):
        with pytest.raises(InputError, match=r"num_steps is 701; it must lie in 1\.\.700"):
            call([""], frames=2, num_steps=701, progress=done.append)
    assert not done  # before the first video is made
    with pytest.raises(InputError, match="inversion is of models of text alone, this one makes finished videos larger"):
        last.invert(np.zeros((1, 2, 8, 8, 3), np.float32), [""])
    with pytest.raises(InputError, match="--motion is of models of text alone, this one makes finished videos larger"):
        last.in_motion([""], (0.0, 1.0), frames=2)
    for how, says in (
        ({}, "makes a video larger and has none: give it one, --video, or sample the model"),
        (dict(lowres=low[:, :1]), "has 1 frames, it should have 2"),
        (dict(lowres=low, noise=last.noise(1, 2)), "begins with a video"),
    ):
        with pytest.raises(InputError, match=says):
            last.latents([""], frames=2, **how)


def test_an_enlarged_frame_is_linear_between_pixels():
    """Of a ramp it is the ramp, where pixels are between pixels; beyond the outermost it is these."""
    ramp = np.broadcast_to(np.arange(0, 80, 10, dtype=np.uint8)[:, None, None], (1, 1, 8, 5, 3))
    made = resize_linear(ramp, (16, 10))
    expected = np.clip(np.arange(16) * 5.0 - 2.5, 0, 70)
    np.testing.assert_allclose(made, np.broadcast_to(expected[:, None, None], made.shape), atol=1e-4)


def test_what_cannot_be_made_larger():
    above = generator(size=(4, 8, 8), time_factor=2)
    with pytest.raises(InputError, match="makes a video larger and has none"):
        above([""])
    with pytest.raises(InputError, match=r"is \(1, 4, 8, 8, 3\), it should be \(1, 2, 8, 8, 3\)"):
        above([""], lowres=some(1, 4, 8, 8))
    with pytest.raises(InputError, match=r"lowres_level=2\.0 is not between 0 and 1\.0"):
        above([""], lowres=some(1, 2, 8, 8), lowres_level=2.0)
    with pytest.raises(InputError, match="5 frames of 8x8 do not divide by time_factor=2"):
        above([""], frames=5, lowres=some(1, 2, 8, 8))
    with pytest.raises(InputError, match="inversion is of models of text alone, this one knows lowres"):
        above.invert(np.zeros((1, 4, 8, 8, 3), np.float32), [""])
    with pytest.raises(InputError, match="make nothing larger"):
        lowres()
    with pytest.raises(InputError, match="conditioned on lowres, which was not given"):
        embed({"lowres": lowres(time_factor=2)}, {})
    assert embed({}, {}).concat is None


@pytest.mark.parametrize(
    "stage, section, values, says",
    [
        ("temporal", "data", dict(frames=6), "makes 3 frames of 16x16 larger, stage base makes 4 of 16x16"),
        ("temporal", "data", dict(frames=7), "7 frames of 16x16 do not divide by time_factor=2"),
        ("base", "data", dict(stride=1), r"is shown every 2\. frame of its clips: stage base wants data\.stride=2"),
        ("spatial", "data", dict(size=48), "makes 8 frames of 12x12 larger, stage temporal makes 8 of 16x16"),
        ("temporal", "data", dict(images=2), "2 stills have no frames between them"),
        ("temporal", "conditioning", dict(lowres=dict(of="bas", time_factor=2)), "did you mean 'base'"),
        ("temporal", "conditioning", dict(lowres=dict(of="base", factor=2)), "lowres.factor does not exist"),
    ],
)
def test_stages_that_do_not_fit_each_other_are_refused(stage, section, values, says, tmp_path):
    made = config("imagen_video:clips")
    own = made["stages"][stage]
    own[section] = {**own.get(section, {}), **values}
    with pytest.raises(InputError, match=says) as caught:
        for name in stage_names(made):
            recipe.check(recipe.build(made, name, tmp_path))
    assert "\n" not in str(caught.value)


def test_a_run_trains_all_stages_and_samples_through_them(env, tmp_path):
    """As a user runs it: one stage alone, the others, a sample; a stage without those below cannot be sampled."""
    flags = {"data.source": "shapes", "data.heldout": 0, "conditioning.text.dim": 16, "conditioning.text.length": 32}
    flags |= {"model.blocks_per_level": 0, "model.block": "(('attn2','tokens'),)", "model.after_resnet": "none"}
    flags |= {"sample.num_steps": 2, "sample.per_caption": 1}
    for name in ("base", "temporal", "spatial"):
        flags |= {f"stages.{name}.train.steps": 1, f"stages.{name}.model.channels": "(32,)"}
        flags |= {f"stages.{name}.model.attention_levels": "False"}
    flags |= {"stages.spatial.data.size": 32, "stages.spatial.conditioning.lowres.space_factor": 2}
    given = [f"--config.{key}={value}" for key, value in flags.items()]
    workdir, out = tmp_path / "run", tmp_path / "out"
    main = ("main", f"--config={ROOT}/configs/imagen_video.py:clips", f"--workdir={workdir}", *given)
    alone = program(*main, "--stage=spatial", env=env)
    assert alone.returncode == 0, alone.stderr
    with pytest.raises(InputError, match="run/base/checkpoints: train that stage first"):
        Run(workdir).generator()
    done = program(*main, env=env)
    assert done.returncode == 0, done.stderr
    assert "spatial: finished, 1 steps" in done.stdout and (workdir / "report.html").is_file()
    done = program("sample", f"--workdir={workdir}", "--prompt=a fox", "--all_stages", f"--out={out}", env=env)
    assert done.returncode == 0, done.stderr
    for folder, frames in (("4x16x16", 4), ("8x16x16", 8), (".", 8)):
        with Video(out / folder / "00-a-fox-seed0.mp4") as video:
            assert video.frames == frames
