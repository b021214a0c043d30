"""Shows a video while it is made: the clean latents that a step predicts, as a small moving picture."""

import numpy as np
from jaxtyping import Float, UInt8

from vidjax.data.animation import encode_animation
from vidjax.data.transforms import to_uint8

MAX_SIDE, MAX_FRAMES = 128, 16  # of a preview
RIDGE = 1e-3


class Previews:
    """Colours of a model's latents: a decoder would wait for the sampler, so they are a linear function, the nearest
    one to what the decoder made of the last video. A model without a codec needs none."""

    def __init__(self, coded: bool):
        self.coded, self._map = coded, None

    def fit(self, latents: Float[np.ndarray, "t h w c"], video: UInt8[np.ndarray, "f y x d"]) -> None:
        """Learns the colours from one decoded video."""
        if self.coded and all(n % m == 0 for n, m in zip(video.shape[:3], latents.shape[:3])):
            t, h, w, channels = latents.shape
            f, y, x = (n // m for n, m in zip(video.shape[:3], (t, h, w)))
            means = video.reshape(t, f, h, y, w, x, -1).mean((1, 3, 5)).reshape(t * h * w, -1)
            known = np.c_[latents.reshape(-1, channels), np.ones(t * h * w)].astype(np.float64)
            gram = known.T @ known + RIDGE * len(known) * np.eye(channels + 1)
            self._map = np.linalg.solve(gram, known.T @ means)

    def colours(self, latents: Float[np.ndarray, "t h w c"]) -> UInt8[np.ndarray, "t h w d"] | None:
        """Returns the pixels that latents stand for, one each; None before `fit`."""
        if not self.coded:
            return np.asarray(to_uint8(latents))
        if self._map is None:
            return None
        return np.clip(np.round(latents @ self._map[:-1] + self._map[-1]), 0, 255).astype(np.uint8)

    def encode(self, latents: Float[np.ndarray, "t h w c"], seconds: float) -> bytes | None:
        """Encodes a preview that lasts as long as its video as an animated WebP; None before `fit`."""
        t, h, w, _ = latents.shape
        every, step = -(-t // MAX_FRAMES), -(-max(h, w) // MAX_SIDE)
        video = self.colours(latents[::every, ::step, ::step])
        return None if video is None else encode_animation(video, len(video) / seconds, "WEBP")
