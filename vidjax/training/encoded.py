"""Clips and captions that are encoded once: what a frozen encoder would say at every step is kept instead.

`encode_once` turns a batch of pixels and ids into posterior moments and text features; `stand_in` is the model that
reads these, with the U-Net of the one that reads pixels; `Encoded` hands them out in batches, as a data set does.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from vidjax.data import order
from vidjax.data.pipeline import Dataset
from vidjax.data.transforms import to_unit
from vidjax.errors import InputError
from vidjax.models.stored import StoredMoments, StoredText
from vidjax.models.video_model import Codec, VideoModel
from vidjax.runtime.compiling import jit

FRAMES = 4  # encoded at a time, where frames are independent


def stand_in(model: VideoModel, text: bool = True) -> VideoModel:
    """`model` for batches that `encode_once` made: the same U-Net (not a copy), no autoencoder, no text encoder.

    With `text` false it keeps the text encoder, which reads ids: so that this can train. No caption is dropped either
    way, as neither DreamBooth nor Tune-A-Video drops them. What else the model is told stays.
    """
    assert model.codec is not None
    codec, stored = StoredMoments(model.codec.shift, model.codec.scale), model.embedders
    if "text" in stored:
        model.text.drop = 0.0
        stored["text"] = StoredText(model.text.tokens_dim) if text else model.text
    return VideoModel(model.unet, stored, codec, masked=model.masked, remat=model.remat)


class Encoder(nnx.Module):
    """The parts of a model that never train: its codec, and its text encoder if that is a folder's."""

    def __init__(self, codec: Codec, text: Any = None):
        self.codec, self.text = codec, text


def encode_once(model: VideoModel | Encoder, batch: Mapping[str, Any], text: bool = True) -> dict[str, Any]:
    """The batch with moments for `video` and `images` uint8 [b, t, h, w, c], and with `text` features for `tokens`
    [b, n]; the rest as it is."""
    out = {key: moments(model.codec, value) if key in ("video", "images") else value for key, value in batch.items()}
    return {**out, "tokens": model.text(batch["tokens"])["tokens"].astype(jnp.float32)} if text else out


def moments(codec: Codec, video: UInt8[Array, "b t h w c"]) -> Float[Array, "b s i j m"]:
    """(mean, logvar) of the posterior, side by side, in fp32."""
    x = to_unit(video).astype(codec.dtype)
    count = FRAMES if codec.per_frame("encoder") else x.shape[1]
    parts = [codec.autoencoder.encode(x[:, i : i + count]) for i in range(0, x.shape[1], count)]
    return jnp.concatenate([jnp.concatenate([p.mean, p.logvar], -1) for p in parts], 1).astype(jnp.float32)


class Encoded:
    """Encoded examples in batches, each of examples of one shape: every epoch in its own order, a function of (seed,
    step) alone. `captions` [k, ...] of an example are what its `tokens` are drawn from, anew every epoch; with `drop`
    the last one, the empty caption, takes that share. `groups` are
    lists of the numbers of examples of one shape, and how often each list is drawn from; by default one of all."""

    def __init__(
        self,
        examples: Sequence[Mapping[str, np.ndarray]],
        seed: int,
        groups: Sequence[tuple[Sequence[Sequence[int]], Sequence[float]]] | None = None,
        drop: float = 0.0,
    ):
        self._examples, self._seed, self._drop = examples, seed, drop
        self._groups = groups or [((range(len(examples)),), (1.0,))]

    def batches(
        self, batch_size: int, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """As `Dataset.batches`, but a batch may hold an example several times, each with noise of its own.

        Raises InputError for a batch that the processes do not divide.
        """
        if batch_size % process_count:
            raise InputError(f"batch size {batch_size} does not divide over {process_count} processes")
        streams = [s.random_map(self._example) for s in order.stream_groups(self._groups, self._seed)]
        shares = [sum(weights) for _, weights in self._groups]
        return order.read(order.batch_streams(streams, shares, batch_size, start_step, process_index, process_count))

    def _example(self, number: int, rng: np.random.Generator) -> dict[str, Any]:
        example = {**self._examples[number], "substituted": np.bool_(False)}
        if (captions := example.pop("captions", None)) is not None:
            dropped = bool(self._drop) and rng.random() < self._drop
            example["tokens"] = captions[-1 if dropped else int(rng.integers(len(captions) - bool(self._drop)))]
        return example


class Beside:
    """Two sources in step: batches of the first with, as `prior`, those of the second, which has as many examples."""

    def __init__(self, own: Encoded, prior: Encoded):
        self._own, self._prior = own, prior

    def batches(self, *args: int) -> Iterator[dict[str, Any]]:
        """As `Encoded.batches`."""
        for own, prior in zip(self._own.batches(*args), self._prior.batches(*args)):
            yield {**own, "prior": {key: value for key, value in prior.items() if key != "substituted"}}


def encode_clips(
    encode: Callable[[Any, Any], Any],
    model: Any,
    videos: Iterable[UInt8[np.ndarray, "t h w c"]],
    ids: Iterable[Int[np.ndarray, " n"] | Int[np.ndarray, "k n"]],
    seed: int,
    groups: Sequence[tuple[Sequence[Sequence[int]], Sequence[float]]] | None = None,
    drop: float = 0.0,
) -> Encoded:
    """Clips with the ids of their caption, or of several, by `encode(model, batch)` (see `encode_once`); without
    `groups` all are of one size. `drop`: how often the last caption, then an empty one, takes the place of the others.
    """
    graphdef, state = nnx.split(model)
    run = jit(lambda state, batch: encode(nnx.merge(graphdef, state), batch))
    examples = []
    for video, own in zip(videos, ids, strict=True):
        made = run(state, {"video": video[None], "tokens": np.atleast_2d(np.asarray(own, np.int32))})
        example = {key: np.asarray(value[0]) for key, value in made.items() if key != "tokens"}
        captions = np.asarray(made["tokens"])
        examples.append({**example, **({"captions": captions} if captions.size else {})})
    return Encoded(examples, seed, groups, drop)


def encode_dataset(
    encode: Callable[[Any, Any], Any],
    model: Any,
    dataset: Dataset,
    tokenize: Callable[[str], np.ndarray] | None,
    seed: int,
    drop: float = 0.0,
) -> Encoded:
    """The first training window of every clip that can be read, in the shape of its bucket, with all its captions, of
    which training hides the share `drop`; without `tokenize` with none."""
    read = tokenize or (lambda text: np.zeros(0, np.int32))
    cut = enumerate(dataset.windows("train", per_clip=1, as_trained=True))
    videos = {index: windows[0] for index, windows in cut if len(windows)}
    places = {index: place for place, index in enumerate(videos)}
    empty = ("",) * bool(drop)
    ids = (np.stack([read(text) for text in (*dataset.item(index).captions, *empty)]) for index in videos)
    groups = []
    for group in dataset.groups:
        lists = [[places[i] for i in own if i in places] for own in group.members]
        kept = [(own, weight) for own, weight in zip(lists, group.weights) if own]
        groups += [tuple(zip(*kept))] if kept else []
    return encode_clips(encode, model, videos.values(), ids, seed, groups, drop)


def first_windows(dataset: Dataset) -> tuple[list[np.ndarray], list[str]]:
    """The first evaluation window of every clip that has one, and its caption."""
    pairs = zip(dataset.windows("train", per_clip=1), dataset.texts, strict=True)
    videos, texts = zip(*((windows[0], text) for windows, text in pairs if len(windows)))
    return list(videos), list(texts)
