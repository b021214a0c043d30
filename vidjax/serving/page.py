"""The page in a browser: a form that asks for a video and shows it while it is made, and the user's videos.

Pictures and videos are sent inside the page, as data URLs: Gradio, which serves files to whoever knows their names,
gets none.
"""

import base64
from collections.abc import AsyncIterator
from html import escape
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from vidjax.serving.events import watch
from vidjax.serving.files import THUMBNAIL, TYPES, VIDEO
from vidjax.serving.guard import Guard
from vidjax.serving.jobs import DONE, Job, Jobs
from vidjax.serving.keys import LOCAL, User
from vidjax.serving.orders import Orders
from vidjax.serving.refused import Refused
from vidjax.serving.views import view_job

PATH = "/page"
SHOWN = 50  # videos of a user
CSS = "img, video {max-width: 100%; min-width: min(100%, 16rem); image-rendering: pixelated}"


def mount(app: FastAPI, jobs: Jobs, orders: Orders, guard: Guard) -> None:
    """Puts the page into an app; holders of keys log in with their name and key."""

    def knows(name: str, key: str) -> bool:
        user = guard.keys.find(key)
        return user is not None and user.name == name

    page = Page(jobs, orders, guard).build()
    page.queue(default_concurrency_limit=64, api_open=False)
    how: dict[str, Any] = dict(max_file_size=jobs.limits.upload, ssr_mode=False, show_error=False, footer_links=[])
    auth = knows if guard.require_keys else None
    gr.mount_gradio_app(app, page, PATH, auth=auth, auth_message="Name and key of this server", css=CSS, **how)

    @app.get("/", include_in_schema=False)
    def lead_on() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")


class Page:
    """What the page shows, and what its buttons do for the user who presses them."""

    def __init__(self, jobs: Jobs, orders: Orders, guard: Guard):
        self.jobs, self.orders, self.guard = jobs, orders, guard
        self.cards = orders.cards

    def build(self) -> gr.Blocks:
        """Lays the page out."""
        with gr.Blocks(title="vidjax", analytics_enabled=False) as page:
            gr.Markdown("# vidjax")
            with gr.Tabs() as tabs:
                with gr.Tab("Make", id="make"):
                    fields, shown = self._build_form()
                with gr.Tab("Videos", id="videos") as second:
                    choice = gr.Radio([], label="Your videos, the newest first")
                    player, about = gr.HTML(), gr.JSON(label="Settings")
                    with gr.Row():
                        again = gr.Button("Again, with changes")
                        remove = gr.Button("Remove", variant="stop")
            second.select(self.list_videos, None, choice, api_visibility="private")
            page.load(self.list_videos, None, choice, api_visibility="private")
            choice.change(self.show, choice, [player, about], api_visibility="private")
            again.click(self.again, choice, [tabs, *fields[:-1]], api_visibility="private")
            remove.click(self.remove, choice, choice, api_visibility="private")
            shown[-1].change(self.list_videos, None, choice, api_visibility="private")
        return page

    def _build_form(self) -> tuple[list[Any], list[Any]]:
        limits, card = self.jobs.limits, next(iter(self.cards.values()))
        frames, height, width = card.size
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="Prompt", lines=2, autofocus=True)
                model = gr.Dropdown(list(self.cards), value=card.name, label="Model")
                label = gr.Number(label="Class", precision=0, minimum=0, visible=bool(card.classes), value=None)
                most = max(limits.frames, frames)
                length = gr.Slider(card.strides[0], most, frames, step=card.strides[0], label="Frames")
                size = gr.Textbox(f"{width}x{height}", label="Width x height")
                steps = gr.Slider(1, max(limits.steps, card.num_steps), card.num_steps, step=1, label="Steps")
                guidance = gr.Slider(0, 20, card.guidance_scale, step=0.1, label="Guidance")
                negative = gr.Textbox(label="What to stay away from (wants guidance other than 1)")
                seed = gr.Number(label="Seed (empty: a new one)", precision=0, minimum=0, value=None)
                strength = gr.Slider(0.05, 1, 0.7, step=0.05, label="How much a clip may change")
                file = gr.File(label="Picture or clip to start from", type="binary")
            with gr.Column():
                with gr.Row():
                    start = gr.Button("Make", variant="primary")
                    stop = gr.Button("Stop")
                state, said, picture = gr.State(), gr.Markdown(), gr.HTML()
                done = gr.State()
        fields = [prompt, model, label, length, size, steps, guidance, negative, seed, strength, file]
        shown = [state, said, picture, done]
        for event in (start.click, prompt.submit):
            event(self.make, fields, shown, api_visibility="private", show_progress="hidden")
        stop.click(self.stop, state, said, api_visibility="private")
        model.input(self.choose, model, [label, length, size, steps, guidance], api_visibility="private")
        return fields, shown

    def user(self, request: gr.Request) -> User:
        """Finds the user of a request. Raises gr.Error if the key was taken away."""
        if not self.guard.require_keys:
            return User(LOCAL)
        user = self.guard.keys.named(request.username or "")
        if user is None:
            raise gr.Error("your key is no longer known: log in again")
        return user

    def find(self, id: str, request: gr.Request) -> Job:
        """Finds a video of the user. Raises gr.Error."""
        try:
            return self.jobs.get(self.user(request), id)
        except Refused as refused:
            raise gr.Error(refused.message) from None

    async def make(
        self,
        prompt: str,
        model: str,
        label: int | None,
        frames: int,
        size: str,
        steps: int,
        guidance: float,
        negative: str,
        seed: int | None,
        strength: float,
        content: bytes | None,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Asks for a video, and yields its id, a line about it, how it looks by now, and at the end that it is done."""
        user = self.user(request)
        given = dict(prompt=prompt, model=model, frames=int(frames), size=size.replace(" ", ""), steps=int(steps))
        given |= dict(guidance=guidance, negative_prompt=negative, strength=strength)
        given |= {name: int(value) for name, value in (("label", label), ("seed", seed)) if value is not None}
        try:
            job = await run_in_threadpool(self.orders.create, user, given, content)
        except Refused as refused:
            raise gr.Error(refused.message) from None
        line, picture = "", ""
        async for event in watch(self.jobs, user, job):
            if event.event == "preview":
                picture = show_picture(event.data["url"], f"preview at step {event.data['step']}")
            else:
                line = describe(event.data)
            yield job.id, line, picture, gr.skip()
        try:
            final = await run_in_threadpool(self.jobs.get, user, job.id)
        except Refused:
            return
        yield job.id, line, self.play(final) if final.status == DONE else picture, job.id

    def stop(self, id: str | None, request: gr.Request) -> str:
        """Cancels the video that is being made."""
        if not id:
            return "nothing is being made"
        try:
            return describe(view_job(self.jobs.cancel(self.user(request), id), None))
        except Refused as refused:
            return refused.message

    def choose(self, name: str) -> list[Any]:
        """Sets the form to what another model makes by default."""
        card = self.cards[name]
        frames, height, width = card.size
        length = dict(minimum=card.strides[0], step=card.strides[0], maximum=max(self.jobs.limits.frames, frames))
        return [
            gr.update(visible=bool(card.classes), value=None),
            gr.update(value=frames, **length),
            f"{width}x{height}",
            gr.update(value=card.num_steps, maximum=max(self.jobs.limits.steps, card.num_steps)),
            card.guidance_scale,
        ]

    def list_videos(self, request: gr.Request) -> Any:
        """Lists the user's finished videos as choices."""
        found, _ = self.jobs.list(self.user(request), SHOWN, None, True)
        names = [(name_of(job.settings), job.id) for job in found if job.status == DONE]
        return gr.update(choices=names, value=None)

    def show(self, id: str | None, request: gr.Request) -> tuple[str, Any]:
        """Shows a video and its settings."""
        if not id:
            return "", None
        job = self.find(id, request)
        return self.play(job), {"id": job.id, **job.settings}

    def again(self, id: str | None, request: gr.Request) -> list[Any]:
        """Opens the form with the settings of a video."""
        if not id:
            raise gr.Error("choose a video first")
        how = self.find(id, request).settings
        values = [how["prompt"], how["model"], how["label"], how["frames"], f"{how['width']}x{how['height']}"]
        strength = how["strength"] if how["reference"] == "clip" else gr.skip()
        values += [how["steps"], how["guidance"], how["negative_prompt"], how["seed"], strength]
        return [gr.update(selected="make"), *values]

    def remove(self, id: str | None, request: gr.Request) -> Any:
        """Removes a video and lists the others."""
        if id:
            self.jobs.remove(self.user(request), self.find(id, request).id)
        return self.list_videos(request)

    def play(self, job: Job) -> str:
        """Makes a player of a finished video."""
        video, poster = (address(self.jobs, job, name) for name in (VIDEO, THUMBNAIL))
        words = escape(name_of(job.settings), quote=True)
        return f'<video controls autoplay loop muted playsinline aria-label="{words}" poster="{poster}" src="{video}">'


def address(jobs: Jobs, job: Job, name: str) -> str:
    """Returns a file of a job as a data URL."""
    content = (jobs.folder(job.id) / name).read_bytes()
    return f"data:{TYPES[name]};base64,{base64.b64encode(content).decode()}"


def show_picture(url: str, words: str) -> str:
    """Makes an image of a data URL."""
    return f'<img alt="{escape(words, quote=True)}" src="{url}">'


def name_of(how: dict[str, Any]) -> str:
    """Names a video by its prompt and seed."""
    what = how["prompt"] or (f"class {how['label']}" if how["label"] is not None else how["model"])
    return f"{what[:80]} · seed {how['seed']}"


def describe(view: dict[str, Any]) -> str:
    """Says in one line how far a video is."""
    if view["status"] == "queued":
        return f"waits behind {view['queue_position']} others"
    if view["status"] == "in_progress":
        return f"step {view['step']} of {view['steps']}"
    error = f": {view['error']['message']}" if view["error"] else ""
    return f"{view['status']}{error}, seed {view['seed']}"
