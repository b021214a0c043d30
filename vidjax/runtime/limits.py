"""The most that a file of unknown origin may ask for; more is refused in one line."""

import json
from typing import Any

MAX_PIXELS = 2**26  # of a frame or a picture: those of 8K video have half of it
MAX_FRAMES = 2**20  # of a video: nine hours at 30 per second
MAX_SAMPLES = 2**22  # of all tracks of a video
MAX_DECODED = 2**33  # bytes of the frames that are held at once, and of other decompressed arrays
MAX_CAPTIONS = 2**30  # bytes of a file of captions
MAX_FILE = 2**28  # bytes of a file of text or JSON that is read whole
MAX_HEADER = 10**8  # bytes of a safetensors header
MAX_TEXT = 2**17  # characters of a caption


def from_json(text: str | bytes) -> Any:
    """Parses JSON. Raises ValueError if it is not JSON, or nested deeper than Python can parse."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
