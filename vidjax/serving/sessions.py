"""Who is logged in on the page, and how much each of them may leave with Gradio."""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException, Request

from vidjax.serving.keys import LOCAL, Keys

LEAST = 2**20  # bytes that the smallest upload counts as
UNUSED = {"process_recording", "deep_link"}  # routes of Gradio


class Sessions(dict[str, Any]):
    """The names of those who have logged in, by their session's token: until their key is removed, also if the name has
    another one then. Takes the place of Gradio's dict."""

    def __init__(self, keys: Keys):
        super().__init__()
        self.keys = keys

    def __setitem__(self, token: str, name: str) -> None:
        super().__setitem__(token, (name, self.keys.hash_of(name)))

    def __getitem__(self, token: str) -> str | None:
        return self.get(token)

    def get(self, token: str | None, default: str | None = None) -> str | None:
        """Returns whose session this is."""
        name, known = super().get(token, (None, None))
        return name if known and known == self.keys.hash_of(name) else default


class Uploads:
    """Lets each user upload `most` bytes in so many `seconds`, for which Gradio keeps them; a dependency of its
    routes."""

    def __init__(self, sessions: Mapping[str, Any], most: int, seconds: int):
        self.sessions, self.most, self.seconds = sessions, most, seconds
        self.kept: dict[str, list[tuple[float, int]]] = defaultdict(list)

    async def __call__(self, request: Request) -> None:
        """Raises HTTPException for an upload that is too much or does not tell its size, and for what the page does not
        use: `process_recording` would run FFmpeg, `deep_link` keep files for ever."""
        what, now = request.url.path.rstrip("/").rpartition("/")[2], time.monotonic()
        if what in UNUSED:
            raise HTTPException(404, "that is not served here")
        if request.method != "POST" or what != "upload":
            return
        sent = request.headers.get("content-length")
        if sent is None or "transfer-encoding" in request.headers:  # which would count, whatever the length says
            raise HTTPException(411, "send Content-Length, and no Transfer-Encoding")
        user = next(filter(None, map(self.sessions.get, request.cookies.values())), LOCAL)
        kept = self.kept[user] = [(at, size) for at, size in self.kept[user] if at > now - self.seconds]
        size = max(int(sent), LEAST)
        if sum(size for _, size in kept) + size > self.most:
            wait = str(int(kept[0][0] + self.seconds - now) + 1 if kept else 60)
            raise HTTPException(
                429, "you have uploaded as much as is kept here: try again later", {"retry-after": wait}
            )
        kept.append((now, size))
