"""Writes animated pictures, which browsers and TensorBoard show without a player."""

import io

import numpy as np
from jaxtyping import UInt8


def encode_animation(video: UInt8[np.ndarray, "t h w c"], fps: float, format: str = "GIF") -> bytes:
    """Encodes a video as a picture that moves without end; "GIF" has at most 50 frames per second, "WEBP" more."""
    from PIL import Image

    frames = [Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in video]
    out = io.BytesIO()
    more = {"quality": 90} if format == "WEBP" else {}
    duration = max(1, round(1000 / fps))
    frames[0].save(out, format, save_all=True, append_images=frames[1:], duration=duration, loop=0, **more)
    return out.getvalue()
