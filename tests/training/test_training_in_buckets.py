"""Training on clips of five shapes: killed and resumed as uninterrupted, with a compilation a bucket."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from five_shapes import SHAPES, write_clips
from test_configs import config

from vidjax.recipes import build as recipe
from vidjax.runtime.run_files import read_metrics
from vidjax.training import loop

ROOT = Path(__file__).parents[2]
STEPS = 7


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A recipe of pixels on the folder of clips."""
    folder = write_clips(tmp_path_factory.mktemp("clips"))
    recipe_ = config("tiny:pixels", ROOT / "tests")
    recipe_["data"] = dict(source="folder", path=str(folder), frames=8, size=16, buckets=3, multiple=(1, 4))
    recipe_["model"]["attention_levels"] = (False,)
    train = recipe_["stages"]["diffusion"]["train"]
    train |= dict(steps=STEPS, batch_size=2, sample_every=0, save_every=3)
    return recipe_


def run(made, folder, max_steps=None, step=None):
    """What a run of the recipe ends with: its parameters, and the compiled training step; with another run's `step` it
    compiles none."""
    ended, steps = [], []
    stage = recipe.build(made, "diffusion", folder, max_steps)
    stage = dataclasses.replace(stage, finish=lambda state, dataset: ended.append(state.params))
    with pytest.MonkeyPatch.context() as patch:
        step_of = loop.step_of
        patch.setattr(loop, "step_of", lambda *args: steps.append(step or step_of(*args)) or steps[-1])
        loop.train(stage, log_every=1)
    return jax.tree.map(np.asarray, ended[0]), steps[0]


def losses(folder):
    return [(line["step"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(made, folder)


def test_each_bucket_is_compiled_once(made, whole):
    buckets = recipe.build(made, "diffusion", whole[0]).dataset().buckets
    assert len(buckets) == 3 and sum(count for _, count in buckets) == 2 * len(SHAPES)
    assert whole[2]._cache_size() == len(buckets)
    assert [step for step, *_ in losses(whole[0] / "diffusion")] == list(range(1, STEPS + 1))


def test_killed_between_saves_a_run_ends_as_the_uninterrupted_one(made, whole, tmp_path):
    run(made, tmp_path, 4, whole[2])
    (last,) = (tmp_path / "diffusion" / "checkpoints").glob("4")
    shutil.rmtree(last)  # what a kill after step 4 leaves: the save of step 3
    params, _ = run(made, tmp_path, step=whole[2])
    assert losses(tmp_path / "diffusion") == losses(whole[0] / "diffusion")
    for path, value in whole[1].items():
        np.testing.assert_array_equal(params[path], value)


def test_processes_draw_the_same_bucket_at_each_step(made, whole):
    dataset = recipe.build(made, "diffusion", whole[0]).dataset()
    one, first, second = (itertools.islice(dataset.batches(4, 2, *part), 12) for part in ((0, 1), (0, 2), (1, 2)))
    for batch, *parts in zip(one, first, second):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)
