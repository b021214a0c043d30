"""Who looks at the page, and what that user may see: the parts that the tabs of the page share.

Pictures and videos are sent inside the page, as data URLs: Gradio, which serves files to whoever knows their names,
gets none.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Sequence
from html import escape
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from vidjax.serving.events import read_preview
from vidjax.serving.files import PREVIEW, THUMBNAIL, TYPES, VIDEO
from vidjax.serving.guard import Guard
from vidjax.serving.jobs import DONE, RUNNING, WAITING, Job, Jobs
from vidjax.serving.keys import LOCAL, User
from vidjax.serving.orders import Orders
from vidjax.serving.refused import Refused
from vidjax.serving.requests import Card, check_video, size_of
from vidjax.serving.views import view_job

LOOK_SECONDS = 0.3  # between two looks at jobs


class Visits:
    """Finds users, their models and their jobs for the requests of the page."""

    def __init__(self, jobs: Jobs, orders: Orders, guard: Guard):
        self.jobs, self.orders, self.guard = jobs, orders, guard

    def user(self, request: gr.Request) -> User:
        """Finds the user of a request. Raises gr.Error if the key was taken away."""
        if not self.guard.require_keys:
            return User(LOCAL)
        user = self.guard.keys.named(request.username or "")
        if user is None:
            raise gr.Error("your key is no longer known: log in again")
        return user

    def find(self, id: str, request: gr.Request) -> Job:
        """Finds a job of the user. Raises gr.Error."""
        try:
            return self.jobs.get(self.user(request), id)
        except Refused as refused:
            raise gr.Error(refused.message) from None

    def card(self, name: str, request: gr.Request) -> Card:
        """Finds a model that the user may ask. Raises gr.Error."""
        cards = self.orders.cards_of(self.user(request))
        if name not in cards:
            raise gr.Error("there is no such model; it may have expired")
        return cards[name]

    def size(self, name: str, text: str, request: gr.Request) -> tuple[int, int]:
        """Parses the size of a video of a model as (height, width). Raises Refused if the server makes none so large,
        gr.Error if there is no such model."""
        card = self.card(name, request)
        height, width = size_of(text.replace(" ", ""), card)
        check_video(card.strides[0], height, width, card, self.jobs.limits)
        return height, width

    def choices(self, request: gr.Request) -> list[tuple[str, str]]:
        """Lists the models that the user may ask: what is shown, and the name."""
        user = self.user(request)
        tuned = set(cards := self.orders.cards_of(user)) - set(self.orders.cards)
        own = {name: f"{name_of(self.jobs.get(user, name).settings)} (yours)" for name in tuned}
        return [(own.get(name, name), name) for name in cards]

    def stop(self, ids: Sequence[str], request: gr.Request) -> str:
        """Cancels jobs, and says how that went."""
        user, said = self.user(request), []
        for id in ids:
            try:
                said.append(describe(view_job(self.jobs.cancel(user, id), None)))
            except Refused as refused:
                said.append(refused.message)
        return "; ".join(dict.fromkeys(said)) or "nothing is being made"

    async def follow(self, user: User, ids: Sequence[str]) -> AsyncIterator[list[tuple[Job, str]]]:
        """Yields jobs, each with a line about it, whenever something is new, until all have ended or are gone."""
        told = None
        while True:
            found = await run_in_threadpool(self._look, user, ids)
            if found != told:
                told = found
                yield found
            if not any(job.status in (WAITING, RUNNING) for job, _ in found):
                return
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self, user: User, ids: Sequence[str]) -> list[tuple[Job, str]]:
        found = []
        for id in ids:
            with contextlib.suppress(Refused):
                job = self.jobs.get(user, id)
                found.append((job, describe(view_job(job, self.jobs.position(job)))))
        return found

    def show(self, job: Job) -> str:
        """Shows a finished video, or what there is of one."""
        if job.status == DONE and (self.jobs.folder(job.id) / VIDEO).exists():
            return self.play(job)
        content = read_preview(self.jobs, job) if job.preview else None
        return show_picture(content, f"preview at step {job.preview}") if content else ""

    def play(self, job: Job) -> str:
        """Makes a player of a finished video."""
        video, poster = (self._address(job, name) for name in (VIDEO, THUMBNAIL))
        words = escape(name_of(job.settings), quote=True)
        how = f'controls autoplay loop muted playsinline aria-label="{words}"'
        return f'<video {how} poster="{poster}" src="{video}"></video>'

    def _address(self, job: Job, name: str) -> str:
        return address((self.jobs.folder(job.id) / name).read_bytes(), TYPES[name])


def address(content: bytes, kind: str) -> str:
    """Returns a file's content as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def show_picture(content: bytes, words: str) -> str:
    """Makes an image of a WebP."""
    return f'<img alt="{escape(words, quote=True)}" src="{address(content, TYPES[PREVIEW])}">'


def name_of(how: dict[str, Any]) -> str:
    """Names a job by its prompt and seed."""
    what = how["prompt"] or (f"class {how['label']}" if how["label"] is not None else how["model"])
    return f"{what[:80]} · seed {how['seed']}"


def describe(view: dict[str, Any]) -> str:
    """Says in one line how far a job is."""
    if view["status"] == "queued":
        return f"waits behind {view['queue_position']} others"
    if view["status"] == "in_progress":
        return f"step {view['step']} of {view['steps']}"
    error = f": {view['error']['message']}" if view["error"] else ""
    return f"{view['status']}{error}, seed {view['seed']}"


def length_of(card: Card, most: int) -> dict[str, Any]:
    """What a slider of frames offers for a model."""
    return dict(minimum=card.strides[0], step=card.strides[0], maximum=max(most, card.size[0]), value=card.size[0])
