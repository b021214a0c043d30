"""The most that one request, and all requests together, may ask of a server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of a video: frames, pixels of each, steps. Of a request: bytes. Of the server: videos that wait, hours that a
    finished one is kept. Of tuning: steps, none if nobody may tune, and models that a user keeps. What a model was
    trained on is always allowed."""

    frames: int = 64
    pixels: int = 2**20
    steps: int = 100
    upload: int = 2**26
    queue: int = 100
    hours: float = 24.0
    tune_steps: int = 0
    tuned: int = 10
