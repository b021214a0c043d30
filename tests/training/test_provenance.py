"""What a stage was trained with, and what it may go on with."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.data.video_writing import write_mp4
from vidjax.errors import InputError
from vidjax.runtime.preemption import Notice
from vidjax.runtime.storage import write_json
from vidjax.training import provenance
from vidjax.training.checkpoint import Checkpoints
from vidjax.training.state import TrainState


def saved(folder, step):
    """A stage's folder with a checkpoint in it."""
    state = TrainState.create(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state.__class__(**{**vars(state), "step": jnp.asarray(step, jnp.int32)}))


@pytest.fixture
def clips(tmp_path):
    """A data set of one clip, whose file other tests may change."""
    write_mp4(tmp_path / "clip.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8)
    return lambda: make_dataset(DataConfig(video=str(tmp_path / "clip.mp4"), frames=2, size=16), seed=0)


SECTION = dict(
    objective="diffusion",
    data=dict(video="a.mp4", size=16, workers=0),
    train=dict(steps=6, batch_size=8, log_every=1),
    optimizer=dict(learning_rate=1e-3),
    sample=dict(num_steps=3),
)


def changed(**sections):
    return provenance.settings_of({**SECTION, **{key: {**SECTION[key], **new} for key, new in sections.items()}})


def test_only_what_changes_numbers_is_refused(tmp_path, clips):
    folder = tmp_path / "stage"
    saved(folder, 2)
    provenance.write(folder, changed(), clips(), None)
    free = (dict(data=dict(workers=4)), dict(train=dict(log_every=5)), dict(sample=dict(num_steps=9)))
    for sections in (*free, dict(train=dict(steps=12))):
        provenance.check_settings(folder, changed(**sections), False)
    for sections in (dict(data=dict(size=32)), dict(train=dict(batch_size=4)), dict(optimizer=dict(clip=2.0))):
        with pytest.raises(InputError, match=r"--allow_changes"):
            provenance.check_settings(folder, changed(**sections), False)
        provenance.check_settings(folder, changed(**sections), True)
    (folder / "done.json").touch()
    with pytest.raises(InputError, match=r"config.data.size=16, not 32: take another --workdir"):
        provenance.check_settings(folder, changed(data=dict(size=32)), True)


def test_the_length_counts_where_the_learning_rate_follows_it(tmp_path, clips):
    folder = tmp_path / "stage"
    saved(folder, 2)
    cosine = dict(optimizer=dict(schedule="cosine"))
    provenance.write(folder, changed(**cosine), clips(), None)
    with pytest.raises(InputError, match=r"config.train.steps=6, not 12"):
        provenance.check_settings(folder, changed(train=dict(steps=12), **cosine), False)


def test_without_a_checkpoint_anything_may_be_tried(tmp_path, clips):
    provenance.write(tmp_path, changed(), clips(), None)
    provenance.check_settings(tmp_path, changed(data=dict(size=32)), False)


def test_another_clip_under_the_same_name_is_refused(tmp_path, clips):
    folder = tmp_path / "stage"
    saved(folder, 2)
    provenance.write(folder, changed(), clips(), None)
    provenance.check_data(folder, clips(), False)
    write_mp4(tmp_path / "clip.mp4", np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8), 8)
    with pytest.raises(InputError, match=r"the first one 'clip\.mp4'"):
        provenance.check_data(folder, clips(), False)


def test_a_trial_on_a_source_that_was_cut_short_starts_anew(tmp_path, clips):
    source, folder = tmp_path / "autoencoder", tmp_path / "diffusion"
    saved(source, 2)
    provenance.write(source, changed(), clips(), None)  # 6 steps are planned
    write_json(source / "latents.json", {"shift": 0.0, "scale": 1.0})
    saved(folder, 2)
    provenance.write(folder, changed(), clips(), source)
    provenance.check_source(folder, source, False)
    assert folder.exists()
    saved(source, 6)
    provenance.check_source(folder, source, False)
    assert not folder.exists() and (tmp_path / "diffusion.old" / "checkpoints" / "2").is_dir()
    saved(folder, 2)
    provenance.write(folder, changed(), clips(), source)
    saved(source, 8)
    with pytest.raises(InputError, match="at step 6, which has changed since"):
        provenance.check_source(folder, source, False)


@pytest.fixture
def keyboard():
    """Ctrl-C as usual: whoever runs the tests may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_nobody_asked_for_is_sent_again(keyboard):
    with pytest.raises(KeyboardInterrupt), Notice():
        os.kill(os.getpid(), signal.SIGINT)
    with Notice() as notice:
        os.kill(os.getpid(), signal.SIGINT)
        assert notice.stops_at(1) and notice.status == 130
