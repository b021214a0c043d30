"""Computes features of videos with I3D, InceptionV3 or EfficientNet of published weights, or with a random I3D."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from vidjax.errors import InputError
from vidjax.metrics.resizing import bilinear
from vidjax.models.efficientnet import EfficientNetLite0
from vidjax.models.i3d import I3D
from vidjax.models.inception import InceptionV3
from vidjax.models.keys import Keys, OneKey
from vidjax.runtime.compiling import jit
from vidjax.weights import efficientnet, i3d, inception
from vidjax.weights.convert import Rules, load
from vidjax.weights.folder import read_file


@dataclasses.dataclass(frozen=True)
class Kind:
    """A network and how the published metrics preprocess videos for it; `protocol` says so in words.

    `outputs` maps videos [b, t, s, s, 3] to features [b, m, d], m per video.
    """

    model: Callable[..., nnx.Module]
    size: int
    half_pixels: bool
    scale: Callable[[Array], Array]
    outputs: Callable[[Any, Array], tuple[Array, ...]]
    rules: Rules
    ignore: str
    protocol: str
    read: Callable[[str | Path], Mapping[str, np.ndarray]] = read_file

    def show(self, video: UInt8[Array, "t h w 3"]) -> Float[Array, "t s s 3"]:
        """Scales values and size of a video for the network."""
        return bilinear(self.scale(video.astype(jnp.float32)), self.size, self.half_pixels)


def frame_by_frame(model: InceptionV3, videos: Float[Array, "b t h w 3"]) -> tuple[Array, ...]:
    """Returns each output of the network for every frame, [b, t, d]."""
    outputs = model(videos.reshape(-1, *videos.shape[2:]))
    return tuple(y.reshape(*videos.shape[:2], -1) for y in outputs)


def frames_and_steps(model: EfficientNetLite0, videos: Float[Array, "b t h w 3"]) -> tuple[Array, Array]:
    """Returns the features of every frame, and their differences from every frame to the next."""
    frames = model(videos.reshape(-1, *videos.shape[2:])).reshape(*videos.shape[:2], -1)
    return frames, frames[:, 1:] - frames[:, :-1]


KINDS = {
    "i3d": Kind(
        I3D,
        I3D.SIZE,
        True,
        lambda x: x / 127.5 - 1,
        lambda model, videos: (model(videos)[:, None],),
        i3d.RULES,
        i3d.BUFFERS,
        "I3D logits, mean over time; first frames, 224x224 bilinear (half-pixel centres, no antialiasing), 2x/255 - 1",
    ),
    "inception": Kind(
        InceptionV3,
        InceptionV3.SIZE,
        False,
        lambda x: (x - 128) / 128,
        frame_by_frame,
        inception.RULES,
        inception.UNUSED,
        "InceptionV3 (2015-12-05) of every frame, 299x299 bilinear as in TensorFlow 1 (corners at 0), (x - 128)/128",
    ),
    "efficientnet": Kind(
        EfficientNetLite0,
        EfficientNetLite0.SIZE,
        True,
        lambda x: (x - 127) / 128,
        frames_and_steps,
        efficientnet.RULES,
        efficientnet.UNUSED,
        "EfficientNet-Lite0 (ImageNet) before its classifier, of every frame or from one to the next; 224x224 bilinear "
        "(half-pixel centres, no antialiasing), (x - 127)/128",
        efficientnet.read_efficientnet,
    ),
}


class FeatureNetwork:
    """Runs one of `KINDS` on `batch` videos at a time over this process's devices; compiles once per number of frames.

    file: the published weights in a safetensors file; None: the random weights of seed 0, the same everywhere.
    Raises InputError for a file that is not there, is a pickle, is cut off or has other keys.
    """

    def __init__(self, kind: str, file: str | Path | None, batch: int = 4):
        self.kind = KINDS[kind]
        here = jax.local_devices()
        self.mesh = jax.make_mesh((len(here),), ("data",), (AxisType.Auto,), devices=here)
        self.batch = -(-batch // self.mesh.size) * self.mesh.size
        if file is None:
            model = self.kind.model(rngs=Keys(0))
            self.weights = {"weights": "random, seed 0"}
        else:
            model = nnx.eval_shape(lambda: self.kind.model(rngs=OneKey()))
            load(model, self.kind.read(file), self.kind.rules, self.kind.ignore)
            self.weights = {"weights": Path(file).name, "sha256": digest(file)}
        graph, state = nnx.split(model)
        self._state = jax.device_put(state, NamedSharding(self.mesh, PartitionSpec()))
        self._apply = jit(lambda state, x: self.kind.outputs(nnx.merge(graph, state), x))
        self._show = jit(self.kind.show)

    def show(self, video: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "t s s 3"]:
        """Returns the video as the network sees it."""
        return np.asarray(self._show(video))

    def __call__(self, shown: Float[np.ndarray, "n t s s 3"]) -> tuple[Float[np.ndarray, "n _ _"], ...]:
        """Returns the features of at most `batch` videos."""
        filled = np.concatenate([shown, np.repeat(shown[-1:], self.batch - len(shown), 0)])
        with jax.default_matmul_precision("highest"):  # accelerators round to 8 or 11 bits otherwise
            outputs = self._apply(self._state, jax.device_put(filled, NamedSharding(self.mesh, PartitionSpec("data"))))
        return tuple(np.asarray(y)[: len(shown)] for y in outputs)


class Stream:
    """Collects the features [n, m, d] of videos that come one by one; holds one batch of videos."""

    def __init__(self, network: FeatureNetwork, frames: int | None = None):
        self.network, self._frames = network, frames
        self._waiting: list[np.ndarray] = []
        self._done: list[tuple[np.ndarray, ...]] = []

    def add(self, video: UInt8[np.ndarray, "t h w c"]) -> None:
        """Adds a video. Raises InputError if it has not `frames` frames, by default those of the first one."""
        self._frames = self._frames or len(video)
        if len(video) != self._frames:
            raise InputError(
                f"it has {len(video)} frames, {self._frames} are wanted; set --frames to what all videos have"
            )
        self._waiting.append(self.network.show(np.broadcast_to(video, (*video.shape[:3], 3))))
        if len(self._waiting) == self.network.batch:
            self._flush()

    def features(self) -> tuple[np.ndarray, ...]:
        """Returns the features of all videos so far, in order."""
        self._flush()
        return tuple(np.concatenate(parts) for parts in zip(*self._done))

    def _flush(self) -> None:
        if self._waiting:
            self._done.append(self.network(np.stack(self._waiting)))
            self._waiting = []


def digest(file: str | Path) -> str:
    """Returns the SHA-256 of a file."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
