"""Compares a video's frames with each other and with a text by CLIP: frame consistency and text alignment."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from vidjax.data.transforms import to_unit
from vidjax.data.video_reading import resize
from vidjax.errors import InputError
from vidjax.models.clip import ClipImage, ClipText
from vidjax.models.keys import OneKey
from vidjax.runtime.compiling import jit
from vidjax.weights import clip
from vidjax.weights.configs import clip_configs
from vidjax.weights.convert import Rules, load
from vidjax.weights.folder import clip_tokenizer, read_json, read_weights
from vidjax.weights.tensors import Tensors

NEEDS = "a CLIP folder has config.json, model.safetensors, preprocessor_config.json and tokenizer files"
Video = UInt8[np.ndarray, "t h w 3"]


class ClipScorer:
    """A CLIPModel in a folder as transformers saves it; frames go through it `batch` at a time, compiled once.

    Raises InputError if the folder lacks a file or asks for what is not supported.
    """

    def __init__(self, folder: str | Path, batch: int = 16):
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"the folder {folder} does not exist; {NEEDS}, as CLIPModel and CLIPProcessor save them")
        text, image = clip_configs(read_json(folder / "config.json", NEEDS), _preprocessor(folder))
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise InputError(f"{folder} has neither tokenizer.json nor vocab.json; {NEEDS}")
        self.name, self.size, self.batch = folder.resolve().name, image.size, batch
        self.tokenize = clip_tokenizer(folder, text)
        tensors = read_weights(folder)
        self._text = _tower(lambda: ClipText(text, rngs=OneKey()), tensors, clip.TEXT_HALF, clip.TEXT)
        self._image = _tower(lambda: ClipImage(image, rngs=OneKey()), tensors, clip.IMAGE_HALF, clip.IMAGE)

    def embed_frames(self, video: Video) -> Float[np.ndarray, "t d"]:
        """Returns embeddings of length 1."""
        frames = shown_to_clip(video, self.size)
        parts = []
        for start in range(0, len(frames), self.batch):
            part = frames[start : start + self.batch]
            filled = np.concatenate([part, np.repeat(part[-1:], self.batch - len(part), 0)])
            parts.append(np.asarray(self._image(to_unit(filled)))[: len(part)])
        return _unit(np.concatenate(parts))

    def embed_text(self, prompt: str) -> Float[np.ndarray, " d"]:
        """Returns the embedding of length 1 of a text, which is cut to the length that CLIP reads."""
        return _unit(np.asarray(self._text(self.tokenize(prompt)[None])))[0]

    def frame_consistency(self, video: Video, pairs: Literal["successive", "all"] = "successive") -> float:
        """Returns `frame_consistency` of a video. Raises InputError for a single frame."""
        return frame_consistency(self.embed_frames(video), pairs)

    def text_alignment(self, video: Video, prompt: str) -> float:
        """Returns `text_alignment` of a video and a text."""
        return text_alignment(self.embed_frames(video), self.embed_text(prompt))


def frame_consistency(frames: Float[np.ndarray, "t d"], pairs: Literal["successive", "all"] = "successive") -> float:
    """Returns 100 times the mean cosine of the embeddings of successive frames (Gen-1, Esser et al. 2023, section 4.2).

    `pairs="all"`: of any two frames (Tune-A-Video, Wu et al. 2023, section 4.2), which is lower where things move.
    Raises InputError for a single frame.
    """
    if len(frames) < 2:
        raise InputError("frame consistency compares frames, and this video has one: give videos of two or more")
    cosines = frames @ frames.T
    chosen = np.diag(cosines, 1) if pairs == "successive" else cosines[np.triu_indices(len(frames), 1)]
    return 100 * float(chosen.mean())


def text_alignment(frames: Float[np.ndarray, "t d"], text: Float[np.ndarray, " d"]) -> float:
    """Returns 100 times the mean cosine of the embeddings of the frames and of the text (CLIPSIM, Wu et al. 2021)."""
    return 100 * float((frames @ text).mean())


def shown_to_clip(video: Video, size: int) -> UInt8[np.ndarray, "t {size} {size} 3"]:
    """Scales the shorter side to `size`, bicubic, and crops the centre, as transformers' CLIPImageProcessor does."""
    height, width = video.shape[1:3]
    short = min(height, width)
    scaled = resize(video, (size * height // short, size * width // short))
    top, left = ((n - size) // 2 for n in scaled.shape[1:3])
    return scaled[:, top : top + size, left : left + size]


def _preprocessor(folder: Path) -> dict[str, Any]:
    """Reads the image processor's config, which transformers 5 writes into that of the whole processor."""
    if (whole := folder / "processor_config.json").is_file() and "image_processor" in (
        config := read_json(whole, NEEDS)
    ):
        return config["image_processor"]
    return read_json(folder / "preprocessor_config.json", NEEDS)


def _tower(make: Callable[[], ClipText | ClipImage], tensors: Tensors, half: str, rules: Rules) -> Callable:
    """Returns a jitted function to the pooled output of a tower with its half of the tensors."""
    model = nnx.eval_shape(make)
    load(model, {k: v for k, v in tensors.items() if re.search(half, k)}, rules, ignore=clip.BUFFERS)
    graph, state = nnx.split(model)
    apply = jit(lambda state, x: nnx.merge(graph, state)(x)[1])
    return lambda x: apply(state, x)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
