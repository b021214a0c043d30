"""Training on what was encoded once is training on pixels and captions."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from five_shapes import write_clips
from flax import nnx
from tiny_folder import write_folder

from vidjax.data.pipeline import DataConfig, make_dataset
from vidjax.diffusion.draws import draws_at
from vidjax.errors import InputError
from vidjax.models import kernels
from vidjax.models.conditioning import embed
from vidjax.training.encoded import Encoded, encode_clips, encode_dataset, encode_once, first_windows, stand_in
from vidjax.training.objectives import diffusion
from vidjax.weights import pretrained


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return pretrained.load(write_folder(tmp_path_factory.mktemp("sd") / "folder"), inflate="tuned")


def test_the_loss_is_that_of_pixels_and_captions(loaded):
    model = loaded.model
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
    ids = np.stack([loaded.tokenize("the fox"), loaded.tokenize("a cat")])
    draws = draws_at(jax.random.key(0), jnp.zeros((), jnp.int32), 2)
    batch = {"video": jnp.asarray(video), "tokens": jnp.asarray(ids)}

    def of(model, batch):
        graphdef, state = nnx.split(model)
        return jax.jit(lambda state, batch: loss(nnx.merge(graphdef, state), batch, draws)[0])(state, batch)

    loss = partial(diffusion, schedule=loaded.schedule, prediction=loaded.prediction)
    pixels = of(model, batch)
    for text in (True, False):
        encoded = jax.jit(lambda batch, text=text: encode_once(model, batch, text))(batch)
        np.testing.assert_allclose(of(stand_in(model, text), encoded), pixels, rtol=1e-5)


def test_clips_are_encoded_at_their_first_window(loaded):
    config = DataConfig(source="webvid", frames=3, size=16)
    dataset = make_dataset(config, seed=0, tokenize=loaded.tokenize)
    first, texts = first_windows(dataset)
    source = encode_clips(encode_once, loaded.model, first, map(loaded.tokenize, texts), seed=0)
    batch = next(source.batches(8))
    means = np.split(batch["video"], 2, -1)[0]
    encode = jax.jit(lambda pixels: loaded.model.codec.autoencoder.encode(pixels / 127.5 - 1).mean)
    own = encode(np.stack(first).astype(np.float32))
    order = [int(np.abs(np.asarray(own) - mean).mean((1, 2, 3, 4)).argmin()) for mean in means]
    assert sorted(order) == list(range(8))
    np.testing.assert_allclose(means, np.asarray(own)[order], atol=1e-4)


def test_a_share_of_the_captions_is_hidden():
    """The last caption is the empty one; without a share it is a caption as the others."""
    example = {"video": np.zeros((1,)), "captions": np.array([[1], [2], [0]])}
    tokens = lambda drop: next(Encoded([example], seed=2, drop=drop).batches(400))["tokens"][:, 0]
    hidden = tokens(0.25)
    assert 70 < (hidden == 0).sum() < 130 and abs((hidden == 1).sum() - (hidden == 2).sum()) < 60
    assert 100 < (tokens(0.0) == 0).sum() < 170 and set(tokens(1.0)) == {0}


def test_batches_are_a_function_of_seed_and_step_and_split_over_processes():
    source = Encoded([{"video": np.full((1,), i)} for i in range(6)], seed=1)
    whole = source.batches(4)
    seen = [next(whole)["video"][:, 0] for _ in range(6)]
    assert sorted(np.concatenate(seen)[:6]) == list(range(6))  # an epoch shows everything once
    later = source.batches(4, start_step=3)
    np.testing.assert_array_equal(next(later)["video"][:, 0], seen[3])
    halves = [source.batches(4, 0, process, 2) for process in (0, 1)]
    for step in range(3):
        np.testing.assert_array_equal(np.concatenate([next(half)["video"][:, 0] for half in halves]), seen[step])
    assert sorted(set(next(source.batches(9))["video"][:, 0])) == list(range(6))  # some of them twice
    with pytest.raises(InputError, match="does not divide over 2 processes"):
        source.batches(3, 0, 0, 2)


def test_clips_of_several_shapes_and_captions_are_encoded_in_their_buckets(loaded, tmp_path):
    """Also a clip that is shorter than data.frames; each example keeps its own clip and one of its captions."""
    write_clips(tmp_path)
    options = dict(source="folder", path=str(tmp_path), frames=2, size=16, buckets=2, multiple=(1, 4))
    dataset = make_dataset(DataConfig(**options, caption_lines=True), seed=0, tokenize=loaded.tokenize)
    kept = lambda model, batch: {"video": batch["video"], "tokens": batch["tokens"]}
    source = encode_dataset(kept, loaded.model, dataset, loaded.tokenize, seed=0)
    windows = dataset.windows("train", 1, as_trained=True)
    seen = set()
    for batch in itertools.islice(source.batches(5), 8):
        assert batch["video"].shape[1:4] in [shape for shape, _ in dataset.buckets]
        for video, tokens in zip(batch["video"], batch["tokens"]):
            same = [i for i, (own,) in enumerate(windows) if own.shape == video.shape and (own == video).all()]
            said = [
                i for i in same if tokens.tolist() in [loaded.tokenize(t).tolist() for t in dataset.item(i).captions]
            ]
            assert said
            seen |= {(i, tuple(tokens.tolist())) for i in said}
    assert {i for i, _ in seen} == set(range(10)) and len(seen) > 12  # of 20 captions
    for start in (0, 3):
        later = list(itertools.islice(source.batches(4, start, 1, 2), 4))
        whole = itertools.islice(source.batches(4, start), 4)
        for half, batch in zip(later, whole):
            np.testing.assert_array_equal(half["tokens"], batch["tokens"][2:])


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_in_bf16_nothing_is_promoted(loaded):
    """Features are kept in fp32; beside weights in bf16 they must not make the rest of the network fp32."""
    graphdef, state = nnx.split(stand_in(loaded.model))
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), state)

    def call(state, x, tokens):
        model = nnx.merge(graphdef, state)
        return model(x, jnp.ones((1, 2)), embed(model.embedders, {"tokens": tokens}))

    with kernels.textbook():  # on CPUs norms sum in fp32 by products with ones
        jaxpr = jax.make_jaxpr(call)(half, jnp.zeros((1, 2, 8, 8, 4)), jnp.zeros((1, 12, 24))).jaxpr
    products = [e for e in equations(jaxpr) if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert len(products) > 50
    assert not [e for e in products if any(v.aval.dtype == jnp.float32 for v in e.invars)]
