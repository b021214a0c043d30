"""Training from encoded examples is training from videos; what was encoded otherwise is refused."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from starts import program
from test_configs import config

from vidjax.data.latents import Latents, fingerprint, write_latents
from vidjax.errors import InputError
from vidjax.recipes import build as recipe
from vidjax.recipes.run import Run
from vidjax.runtime.storage import write_json
from vidjax.training.loop import train
from vidjax.training.validation import LEVELS

ROOT = Path(__file__).parents[2]


def examples(count):
    return [
        {"video": np.full((2, 3), i, "f"), "index": np.int32(i), "substituted": np.bool_(False)} for i in range(count)
    ]


ABOUT = dict(texts=["a", "b"], num_classes=0, seed=3)


def test_batches_are_the_examples_in_order_again_and_again(tmp_path):
    assert write_latents(tmp_path, examples(5), ABOUT) == 5
    numbers = lambda *args: [b["index"].tolist() for b in itertools.islice(Latents(tmp_path, {}).batches(*args), 3)]
    assert numbers(2) == [[0, 1], [2, 3], [4, 0]]
    assert numbers(2, 1) == [[2, 3], [4, 0], [1, 2]]
    assert [a + b for a, b in zip(numbers(4, 0, 0, 2), numbers(4, 0, 1, 2))] == numbers(4)


def test_a_folder_that_was_made_otherwise_is_refused(tmp_path):
    write_latents(tmp_path, examples(2), ABOUT)
    with pytest.raises(InputError, match="seed 3, this run has 4"):
        Latents(tmp_path, {"seed": 4})
    (tmp_path / "cache.json").write_text('{"examples": 2')
    with pytest.raises(InputError, match=r"cache\.json is not JSON"):
        Latents(tmp_path, {})
    (tmp_path / "cache.json").unlink()
    with pytest.raises(InputError, match="has no cache"):
        Latents(tmp_path, {"seed": 3})


def test_a_damaged_example_gives_way_to_the_next(tmp_path, caplog, damage):
    random = np.random.default_rng(0)
    write_latents(tmp_path, [{**example, "video": random.random(200)} for example in examples(5)], ABOUT)
    damage(tmp_path / "latents-00000.array_record", 3)
    latents = Latents(tmp_path, {})
    for _ in range(2):
        first, second = itertools.islice(latents.batches(4), 2)
        assert first["index"].tolist() == [0, 1, 2, 4] and first["substituted"].tolist() == [False] * 3 + [True]
        assert second["index"].tolist() == [4, 0, 1, 2] and not second["substituted"].any()
    (warning,) = (record.getMessage() for record in caplog.records)
    assert f"example 3 of {tmp_path} is left out: its record is damaged" in warning and list(latents.broken) == [3]


def test_a_folder_with_damaged_files_is_refused_in_a_line(tmp_path):
    for name in ("latents-00000.array_record", "heldout.safetensors", "null.safetensors"):
        write_latents(tmp_path, examples(2), ABOUT)
        for content in (b"", b"nothing of the sort" * 99):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match=r"is damaged|0 of 2 examples") as caught:
                Latents(tmp_path, {})
            assert "\n" not in str(caught.value)
    write_latents(tmp_path, examples(2), ABOUT)
    for content in ("[]", '{"examples": "x", "texts": [], "num_classes": 0}'):
        (tmp_path / "cache.json").write_text(content)
        with pytest.raises(InputError, match=r"cache\.json is damaged"):
            Latents(tmp_path, {})


def test_a_fingerprint_is_of_names_and_numbers():
    one = {"a": np.ones(2, "f"), "b": np.zeros(2, "f")}
    assert fingerprint(one) == fingerprint(dict(reversed(one.items())))
    assert fingerprint(one) != fingerprint({"a": one["b"], "b": one["a"]})


@pytest.fixture(scope="module")
def run(env, tmp_path_factory):
    """A run whose autoencoder is trained, and the folder of its latents, as a user makes it."""
    workdir = tmp_path_factory.mktemp("run")
    made = config("tiny:latent", ROOT / "tests")
    made["model"]["attention_levels"] = (False,)  # as in tests/test_main.py, whose programs it has
    for stage in made["stages"].values():
        stage["train"]["sample_every"] = 0
    write_json(workdir / "config.json", made)
    train(recipe.build(made, "autoencoder", workdir))
    flags = [f"--workdir={workdir}", f"--out={workdir / 'latents'}"]
    done = program("cache", *flags, "--examples=16", "--batch=4", env=env)
    assert done.returncode == 0, done.stderr
    again = program("cache", *flags, env=env)
    assert again.returncode == 1 and "is not empty" in again.stderr
    return workdir, made


def with_latents(made, folder):
    return {**made, "data": {**made["data"], "latents": str(folder)}}


def test_batches_equal_those_that_are_encoded_on_the_fly(run):
    workdir, made = run
    stage = recipe.build(with_latents(made, workdir / "latents"), "diffusion", workdir)
    dataset, encode, *_ = Run(workdir).encoding("diffusion")
    size = stage.train.batch_size
    for cached, video in itertools.islice(zip(stage.dataset().batches(size), dataset.batches(size)), 16 // size):
        fresh = encode(video)
        assert cached.keys() == fresh.keys()
        for key, value in fresh.items():
            np.testing.assert_allclose(cached[key], value, atol=1e-5)


def test_training_from_latents_is_training_from_videos(run, tmp_path):
    """As many steps as the latents last: the same losses, held-out windows included; then there is the model."""
    workdir, made = run
    losses = []
    for settled in (made, with_latents(made, workdir / "latents")):
        stage = recipe.build(settled, "diffusion", workdir, max_steps=2)
        recipe.check(stage)
        train(stage, log_every=1)
        log = workdir / "diffusion" / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        losses.append([line["loss"] for line in lines] + [lines[-1][key] for key in lines[-1] if "logsnr" in key])
        (workdir / "diffusion").rename(workdir / f"diffusion-{len(losses)}")
    assert len(losses[0]) == 2 + LEVELS
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    (workdir / "diffusion-2").rename(workdir / "diffusion")
    write_json(workdir / "config.json", with_latents(made, workdir / "latents"))
    assert Run(workdir).generator().latent_shape() == (2, 2, 2, 8)


def test_latents_of_other_weights_or_windows_are_refused(run):
    workdir, made = run
    cached = with_latents(made, workdir / "latents")
    cached["data"]["flip"] = not cached["data"].get("flip", False)
    with pytest.raises(InputError, match="was made with data"):
        recipe.check(recipe.build(cached, "diffusion", workdir))
    cached = with_latents(made, workdir / "latents")
    with pytest.raises(InputError, match="train that stage first"):
        recipe.check(recipe.build(cached, "diffusion", workdir / "elsewhere"))


def test_stored_buckets_are_mixed_as_the_videos_are(tmp_path):
    """Examples of two shapes, of which the second is drawn from three times as often."""
    shapes, random = [(2, 3)] * 4 + [(1, 5)] * 8, np.random.default_rng(0)
    made = [{"video": random.random(s).astype("f"), "index": np.int32(i)} for i, s in enumerate(shapes)]
    heldout = [{"video": np.ones((2, *s), "f"), "label": np.zeros(2, np.int32)} for s in sorted(set(shapes))]
    write_latents(tmp_path, made, {**ABOUT, "buckets": [(4, 1.0), (8, 3.0)]}, heldout)
    latents = Latents(tmp_path, {})
    batches = list(itertools.islice(latents.batches(4), 8))
    numbers = [batch["index"].tolist() for batch in batches]
    assert [n for n in numbers if n[0] < 4] == [[0, 1, 2, 3]] * 2
    assert [n for n in numbers if n[0] >= 4] == [[4, 5, 6, 7], [8, 9, 10, 11]] * 3
    assert [batch["index"].tolist() for batch in itertools.islice(latents.batches(4, 5), 3)] == numbers[5:]
    parts = [[batch["index"].tolist() for batch in itertools.islice(latents.batches(4, 0, p, 2), 8)] for p in (0, 1)]
    assert [a + b for a, b in zip(*parts)] == numbers
    assert next(latents.batches(2, bucket=1))["video"].shape == (2, 1, 5)
    assert [batch["video"].shape for batch in latents.held_out(1)] == [(1, 1, 5), (1, 2, 3)]
    write_json(tmp_path / "cache.json", {**ABOUT, "examples": 12, "buckets": [[4, 1.0], [7, 3.0]]})
    with pytest.raises(InputError, match=r"cache\.json is damaged \(its buckets"):
        Latents(tmp_path, {})
