"""Long videos: which clip knows what, in closed form; with a network: known frames stay, interruptions do not show."""

import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from vidjax.data.video_reading import Video
from vidjax.diffusion.schedule import cosine
from vidjax.errors import InputError
from vidjax.generation import long_video
from vidjax.generation.generator import Generator
from vidjax.generation.long_video import Clips, Plan, clip_seed, sample_parts
from vidjax.generation.options import SampleConfig
from vidjax.models.parameters import parameters
from vidjax.models.unet import UNet, UNetConfig
from vidjax.models.video_model import VideoModel


def counting(length: int, asked: list | None = None) -> Clips:
    """Known latents are a time; the others go on from there, or lie evenly between both ends."""

    def sample(seed, known):
        if asked is not None:
            asked.append(seed)
        if known is None:
            return np.arange(length, dtype=np.float32).reshape(1, -1, 1, 1, 1)
        latents, mask = known
        places, values = np.flatnonzero(mask), latents[0, mask, 0, 0, 0]
        if len(places) == 2 and places[1] == length - 1:
            return np.linspace(*values, length, dtype=np.float32).reshape(1, -1, 1, 1, 1)
        assert (np.diff(values) == 1).all() and (places == np.arange(len(places))).all()
        return (values[0] + np.arange(length, dtype=np.float32)).reshape(1, -1, 1, 1, 1)

    return Clips(sample, length)


def shown(plan, seed, count):
    new = (clip[0, old:, 0, 0, 0] for clip, old in sample_parts(plan, seed))
    return np.array(list(itertools.islice(itertools.chain.from_iterable(new), count)))


@pytest.mark.parametrize("length, overlap", [(4, 1), (8, 3), (5, 4)])
def test_every_clip_goes_on_where_the_one_before_ended(length, overlap):
    np.testing.assert_array_equal(shown(Plan(counting(length), overlap), 0, 50), np.arange(50))


@pytest.mark.parametrize("levels, length", [(1, 5), (2, 3), (3, 4)])
@pytest.mark.parametrize("overlap", [1, 2])
def test_all_gaps_between_keys_are_filled_on_every_level(levels, length, overlap):
    plan = Plan(counting(4), overlap, counting(length), levels)
    step = (length - 1) ** -levels
    np.testing.assert_allclose(shown(plan, 0, 300), step * np.arange(300), atol=1e-4)


def test_no_two_clips_have_the_same_seed_and_the_first_has_that_of_the_video():
    asked = []
    shown(Plan(counting(4, asked), 1, counting(3, asked), 2), 7, 500)
    assert asked[0] == 7 and len(set(asked)) == len(asked) > 300


def test_a_video_may_be_taken_up_at_any_part():
    plan = Plan(counting(4), 1, counting(5), 1)
    whole = [clip for clip, _ in itertools.islice(sample_parts(plan, 3), 9)]  # three clips a part
    _, tail = long_video.sample_part(plan, 3, 0, None)
    later = [clip for clip, _ in itertools.islice(sample_parts(plan, 3, 1, tail), 6)]
    np.testing.assert_array_equal(whole[3:], later)


def test_what_cannot_be_planned():
    with pytest.raises(InputError, match="cannot begin with 4 known ones"):
        Plan(counting(4), 4)
    with pytest.raises(InputError, match="at least 3 latents"):
        Plan(counting(4), 1, counting(2), 1)


@functools.cache
def generator(masked: bool = True, **defaults) -> Generator:
    """Random weights, the last ones too, or nothing would depend on anything."""
    unet = dict(channels=(8,), blocks_per_level=0, attention_levels=False, heads=2, groups=4)
    unet |= dict(block=(("attn_temp", "time"),), tokens_dim=None, in_channels=1 + masked, out_channels=1)
    rngs = nnx.Rngs(0)
    model = VideoModel(UNet(UNetConfig(**unet), rngs=rngs), {}, masked=masked)
    params = parameters(model)
    noisy = lambda i, value: value + 0.2 * jax.random.normal(jax.random.key(i), value.shape)
    params = {path: noisy(i, params[path]) for i, path in enumerate(sorted(params))}
    how = SampleConfig(num_steps=2, known=1, known_level=0.1, fps=8.0, **defaults)
    return Generator(nnx.graphdef(model), params, cosine(steps=None), "v", None, (4, 8, 8), 1, how)


KINDS = {"masks": (True, 1.0), "guided": (True, 1.5), "reconstruction": (False, 1.0)}


@pytest.mark.parametrize("kind", KINDS)
def test_known_frames_stay_what_they_are_and_the_others_go_with_them(kind):
    masked, scale = KINDS[kind]
    model = generator(masked)
    mask = np.array([True, False, False, True])
    one, other = np.random.default_rng(0).uniform(-1, 1, (2, 1, 4, 8, 8, 1)).astype(np.float32)
    made = [np.asarray(model.latents([""], known=(latents, mask), frame_guidance=scale)) for latents in (one, other)]
    for video, latents in zip(made, (one, other)):
        np.testing.assert_array_equal(video[:, mask], latents[:, mask])
    assert np.abs(made[0] - made[1])[:, ~mask].max() > 1e-3
    hidden = np.where(mask[:, None, None, None], one, other)  # what is under unknown frames is nobody's business
    np.testing.assert_array_equal(model.latents([""], known=(hidden, mask), frame_guidance=scale), made[0])


def test_pictures_are_known_frames_of_a_model_that_learned_masks():
    """In each video its own, where they are said to be; a model without masks says which see pictures."""
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    made = generator().latents(["", ""], pictures=pictures, picture_at=(0, -1))
    known = np.zeros((2, 4, 8, 8, 1), np.float32)
    known[:, [0, 3]] = np.float32(pictures.reshape(2, 2, 8, 8, 1)) / 127.5 - 1
    expected = generator().latents(["", ""], known=(known, np.array([1, 0, 0, 1])))
    np.testing.assert_allclose(made, expected, atol=1e-5)
    with pytest.raises(InputError, match="sees no picture, it knows no conditions: those that do move pictures"):
        generator(False).latents([""], pictures=pictures[:1])
    with pytest.raises(
        InputError, match=r"the pictures are \(4, 8, 8, 1\), these videos want \(2, 8, 8, 1\), 1 in each"
    ):
        generator().latents(["", ""], pictures=pictures)


def test_a_model_without_known_frames_samples_as_ever():
    model = generator()
    clip, _ = next(sample_parts(long_video.make_plan(model, ""), seed=5))
    np.testing.assert_array_equal(clip, model.latents([""], seed=5))
    with pytest.raises(InputError, match="known frames are"):
        model.latents([""], known=(np.zeros((1, 3, 8, 8, 1)), np.zeros(3)))


class Interrupted(Exception):
    pass


def test_an_interrupted_video_ends_as_the_uninterrupted_one(tmp_path):
    model = generator()
    plan = long_video.make_plan(model, "", levels=1)

    def write(name, stop=None):
        def report(count):
            if stop and count >= stop:
                raise Interrupted

        return long_video.write(model, plan, tmp_path / name, 40, 1, "this one", 8.0, report=report)

    whole = write("whole")
    for stop in (1, 25):
        with pytest.raises(Interrupted):
            write("cut", stop)
    with (tmp_path / "cut.frames").open("ab") as file:
        file.write(b"half a part")
    cut = write("cut")
    assert cut.read_bytes() == whole.read_bytes()
    assert (tmp_path / "cut.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    with Video(cut) as video:
        assert video.frames == 40
    assert sorted(p.name for p in tmp_path.glob("cut*")) == ["cut.mp4", "cut.png"]


def test_every_piece_of_the_video_is_marked(tmp_path):
    model = generator()
    white = lambda video: np.full_like(video, 255)
    path = long_video.write(model, long_video.make_plan(model, ""), tmp_path / "v", 9, 1, "one", 8.0, mark=white)
    with Video(path) as video:
        assert video.read(range(9)).min() > 250


def test_what_lies_there_of_another_video_is_refused(tmp_path):
    model = generator()
    plan = long_video.make_plan(model, "")
    with pytest.raises(Interrupted):
        raising = lambda count: (_ for _ in ()).throw(Interrupted)
        long_video.write(model, plan, tmp_path / "v", 9, 1, "one", 8.0, report=raising)
    again = lambda identity: long_video.write(model, plan, tmp_path / "v", 9, 1, identity, 8.0)
    with pytest.raises(InputError, match="other arguments or another model"):
        again("two")
    with long_video.Progress(tmp_path / "v", "one"), pytest.raises(InputError, match="by another program"):
        again("one")
    state, frames = tmp_path / "v.npz", tmp_path / "v.frames"
    whole = state.read_bytes()
    with np.load(state) as saved:
        arrays = dict(saved)
    for damage in (b"", b"PK", whole[:-40], whole[: len(whole) // 2]):
        state.write_bytes(damage)
        with pytest.raises(InputError, match=r"v\.npz or v\.frames beside it is damaged.*delete both"):
            again("one")
    for name, value in (("count", -1), ("count", 10**12), ("number", 0), ("shape", [8, -8, 3]), ("count", np.ones(2))):
        np.savez(state, **{**arrays, name: value})
        with pytest.raises(InputError, match="is damaged"):
            again("one")
    state.write_bytes(whole)
    frames.write_bytes(b"")
    with pytest.raises(InputError, match="is cut off"):
        again("one")


def test_clip_seeds_are_those_of_their_places():
    assert clip_seed(3) == clip_seed(3, 0) == 3
    assert len({clip_seed(seed, *place) for seed in range(9) for place in ((1,), (2,), (1, 1), (0, 1), (1, 2))}) == 45
