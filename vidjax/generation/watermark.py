"""An invisible mark on generated videos and its detector.

The mark is a seeded sign for each low frequency (DCT-II) of a frame's two colour differences, added to all frames
(spread spectrum, Cox et al. 1997): the eye is weak there, and pictures have little of their own to hide it. Frequencies
count waves a picture, not a pixel, so it survives resizing; it stands still, so compression wears it down little.
Whoever wants to can remove it.
"""

import numpy as np
from jaxtyping import Float, UInt8
from scipy.fft import dctn, idctn

SEED = 0x51D3A0
LOW, HIGH = 3, 32  # half waves a picture, down and across
STRENGTH = 2.5  # standard deviation of the change, in levels of 0 to 255, of each plane
FOUND = 6.0  # deviations of an unmarked video's score, which is normal whatever the video: 1e-9 of them reach it
# ITU-R BT.601: the planes of red, green, blue that carry the mark, and the colours that change them by one.
TO_PLANES = {3: np.array([[-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]]), 1: np.ones((1, 1))}
TO_COLOURS = {3: np.array([[0.0, -0.344, 1.772], [1.402, -0.714, 0.0]]), 1: np.ones((1, 1))}


def weights(planes: int, height: int, width: int) -> Float[np.ndarray, "p h w"]:
    """The mark: a sign per frequency of each plane, 0 where it has none, growing where pictures fall off."""
    signs = np.where(np.random.default_rng(SEED).random((2, HIGH, HIGH)) < 0.5, -1.0, 1.0)[:planes]
    down, across = np.indices((HIGH, HIGH))
    frequency = np.hypot(down, across)
    shown = (down < 0.7 * height) & (across < 0.7 * width)
    full = np.zeros((planes, height, width))
    rows, columns = min(HIGH, height), min(HIGH, width)
    full[:, :rows, :columns] = (signs * frequency * (shown & (frequency >= LOW) & (frequency < HIGH)))[
        :, :rows, :columns
    ]
    return full


def embed(video: UInt8[np.ndarray, "t h w c"], strength: float = STRENGTH) -> UInt8[np.ndarray, "t h w c"]:
    """Adds the mark to a video; `strength` is its standard deviation in levels of 0 to 255."""
    colours = TO_COLOURS[video.shape[-1]]
    pattern = idctn(weights(len(colours), *video.shape[1:3]), axes=(1, 2), norm="ortho")
    pattern *= strength / pattern.std((1, 2), keepdims=True)
    return np.clip(np.round(video + np.einsum("phw,pc->hwc", pattern, colours)), 0, 255).astype(np.uint8)


def detect(video: UInt8[np.ndarray, "t h w c"]) -> float:
    """Scores how far the video's spectrum leans to the mark's signs: standard normal over marks if it is unmarked."""
    planes = np.einsum("hwc,pc->phw", video.mean(0, dtype=np.float64), TO_PLANES[video.shape[-1]])
    mark = weights(len(planes), *video.shape[1:3])
    leaning = (dctn(planes, axes=(1, 2), norm="ortho") * mark)[mark != 0]
    leaning = np.tanh(leaning / (np.abs(leaning).mean() + 1e-9))  # no single frequency decides
    return float(leaning.sum() / np.sqrt(np.square(leaning).sum() + 1e-9))
