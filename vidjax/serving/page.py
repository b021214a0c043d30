"""The page in a browser: a form that asks for a video and shows it while it is made, the user's videos, and tabs for
edits, tuning and reports."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import gradio as gr
from fastapi import Depends, FastAPI
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from vidjax.serving.guard import Guard
from vidjax.serving.jobs import DONE, Jobs
from vidjax.serving.orders import Orders
from vidjax.serving.page_edit import EditTab
from vidjax.serving.page_inputs import bound_files
from vidjax.serving.page_report import ReportTab
from vidjax.serving.page_tune import TuneTab
from vidjax.serving.refused import Refused
from vidjax.serving.requests import CLIP_STRENGTH
from vidjax.serving.sessions import Sessions, Uploads
from vidjax.serving.uploads import read_aside
from vidjax.serving.visits import Visits, length_of, name_of

PATH = "/page"
SHOWN = 50  # videos of a user
CACHE_SECONDS = (600, 3600)  # how often Gradio's copies of uploads are looked at, and how long they are kept
KEPT_UPLOADS = 16  # of the largest size, that a user may have there
CSS = """
img, video {max-width: 100%; image-rendering: pixelated}
.prose > img, .prose > video {min-width: min(100%, 16rem)}
.beside {display: flex; flex-wrap: wrap; gap: 1rem}
.beside figure {margin: 0; flex: 1 1 9rem; max-width: 18rem}
.beside img, .beside video {width: 100%}
.report {width: 100%; height: 80vh; border: 0; background: white}
"""


def mount(app: FastAPI, jobs: Jobs, orders: Orders, guard: Guard, shown: Mapping[str, str] | None = None) -> None:
    """Puts the page into an app; holders of keys log in with their name and key. `shown`: places of the models whose
    reports are shown."""

    def knows(name: str, key: str) -> bool:
        user = guard.keys.find(key)
        return user is not None and user.name == name

    page = Page(jobs, orders, guard, shown).build()
    page.queue(default_concurrency_limit=64, api_open=False)
    how: dict[str, Any] = dict(max_file_size=jobs.limits.upload, ssr_mode=False, show_error=False, footer_links=[])
    sessions = Sessions(guard.keys)
    uploads = Uploads(sessions, KEPT_UPLOADS * jobs.limits.upload, sum(CACHE_SECONDS))
    how |= dict(auth=knows if guard.require_keys else None, app_kwargs=dict(dependencies=[Depends(uploads)]))
    gr.mount_gradio_app(app, page, PATH, auth_message="Name and key of this server", css=CSS, **how)
    mounted: Any = app.routes[-1]
    mounted.app.tokens = sessions

    @app.get("/", include_in_schema=False)
    def lead_on() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")


class Page:
    """What the page shows, and what its buttons do for the user who presses them."""

    def __init__(self, jobs: Jobs, orders: Orders, guard: Guard, shown: Mapping[str, str] | None = None):
        self.jobs, self.orders, self.visits = jobs, orders, Visits(jobs, orders, guard)
        self.edit_tab, self.tune_tab = EditTab(self.visits), TuneTab(self.visits)
        self.models: list[gr.Dropdown] = []  # in each tab
        self.report_tab = None if shown is None else ReportTab(self.visits, shown)

    def build(self) -> gr.Blocks:
        """Lays the page out."""
        hidden = dict(api_visibility="private", show_progress="hidden")
        with gr.Blocks(title="vidjax", analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
            gr.Markdown("# vidjax")
            models, changes = self.models, [page.load]
            with gr.Tabs() as tabs:
                with gr.Tab("Make", id="make"):
                    fields, shown = self._build_form()
                    models.append(fields[1])
                with gr.Tab("Videos", id="videos") as second:
                    choice = gr.Radio([], label="Your videos, the newest first")
                    player, about = gr.HTML(), gr.JSON(label="Settings")
                    with gr.Row():
                        again = gr.Button("Again, with changes")
                        remove = gr.Button("Remove", variant="stop")
                if any(card.moves for card in self.orders.cards.values()):
                    with gr.Tab("Edit", id="edit"):
                        models.append(self.edit_tab.build())
                if self.jobs.limits.tune_steps and self.tune_tab.cards:
                    with gr.Tab("Tune", id="tune") as tune:
                        changes.append(self.tune_tab.build(tune).change)
                if self.report_tab:
                    with gr.Tab("Report", id="report"):
                        models.append(self.report_tab.build())
            for event in (second.select, page.load, shown[-1].change):
                event(self.list_videos, None, choice, **hidden)
            for event in changes:
                event(self.list_models, None, models, **hidden)
            choice.change(self.show, choice, [player, about], api_visibility="private")
            again.click(self.again, choice, [tabs, *fields[:-1]], api_visibility="private")
            remove.click(self.remove, choice, choice, api_visibility="private")
        return page

    def _build_form(self) -> tuple[list[Any], list[Any]]:
        limits, card = self.jobs.limits, next(iter(self.orders.cards.values()))
        _, height, width = card.size
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox("", label="Prompt", lines=2, autofocus=True)
                with gr.Row():
                    start = gr.Button("Make", variant="primary", min_width=100)
                    stop = gr.Button("Stop", min_width=100)
                model = gr.Dropdown(list(self.orders.cards), value=card.name, label="Model")
                label = gr.Textbox("", label="Class, a number", visible=bool(card.classes))
                file = gr.File(label="Picture or clip to start from", type="binary", height=130)
                bound_files(file, 1, limits.upload)
                with gr.Accordion("Settings", open=False):
                    length = gr.Slider(label="Frames", **length_of(card, limits.frames))
                    size = gr.Textbox(f"{width}x{height}", label="Width x height")
                    steps = gr.Slider(1, max(limits.steps, card.num_steps), card.num_steps, step=1, label="Steps")
                    guidance = gr.Slider(0, 20, card.guidance_scale, step=0.1, label="Guidance")
                    negative = gr.Textbox("", label="What to stay away from (wants guidance other than 1)")
                    seed = gr.Textbox("", label="Seed (empty: a new one)")
                    strength = gr.Slider(0.05, 1, CLIP_STRENGTH, step=0.05, label="How much a clip may change")
            with gr.Column():
                state, said, picture = gr.State(), gr.Markdown(), gr.HTML()
                done = gr.State()
        fields = [prompt, model, label, length, size, steps, guidance, negative, seed, strength, file]
        shown = [state, said, picture, done]
        for event in (start.click, prompt.submit):
            event(self.make, fields, shown, api_visibility="private", show_progress="hidden")
        stop.click(self.stop, state, said, api_visibility="private")
        model.input(self.choose, model, [label, length, size, steps, guidance], api_visibility="private")
        return fields, shown

    async def make(
        self,
        prompt: str,
        model: str,
        label: str,
        frames: int,
        size: str,
        steps: int,
        guidance: float,
        negative: str,
        seed: str,
        strength: float,
        content: bytes | None,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Asks for a video, and yields its id, a line about it, how it looks by now, and at the end that it is done."""
        user = self.visits.user(request)
        given = dict(prompt=prompt or "", model=model, frames=int(frames), size=size.replace(" ", ""), steps=int(steps))
        given |= dict(guidance=guidance, negative_prompt=negative or "", strength=strength)
        given |= {name: value.strip() for name, value in (("label", label), ("seed", seed)) if value and value.strip()}
        aside = read_aside if content else run_in_threadpool
        try:
            job = await aside(lambda: self.orders.create(user, given, content))
        except Refused as refused:
            raise gr.Error(refused.message) from None
        async for found in self.visits.follow(user, [job.id]):
            for each, line in found:
                picture = await run_in_threadpool(self.visits.show, each)
                yield job.id, line, picture or gr.skip(), job.id if each.status == DONE else gr.skip()

    def stop(self, id: str | None, request: gr.Request) -> str:
        """Cancels the video that is being made."""
        return self.visits.stop([id] if id else [], request)

    def choose(self, name: str, request: gr.Request) -> list[Any]:
        """Sets the form to what another model makes by default."""
        card, limits = self.visits.card(name, request), self.jobs.limits
        return [
            gr.update(visible=bool(card.classes), value=""),
            gr.update(**length_of(card, limits.frames)),
            f"{card.size[2]}x{card.size[1]}",
            gr.update(value=card.num_steps, maximum=max(limits.steps, card.num_steps)),
            card.guidance_scale,
        ]

    def list_models(self, request: gr.Request) -> Any:
        """Lists the models that the user may ask as choices, in each tab."""
        found = [gr.update(choices=self.visits.choices(request))] * len(self.models)
        return found if len(found) > 1 else found[0]

    def list_videos(self, request: gr.Request) -> Any:
        """Lists the user's finished videos as choices."""
        found, _ = self.jobs.list(self.visits.user(request), SHOWN, None, True)
        names = [(name_of(job.settings), job.id) for job in found if job.status == DONE]
        return gr.update(choices=names, value=None)

    def show(self, id: str | None, request: gr.Request) -> tuple[str, Any]:
        """Shows a video and its settings."""
        if not id:
            return "", None
        job = self.visits.find(id, request)
        return self.visits.show(job), {"id": job.id, **job.settings}

    def again(self, id: str | None, request: gr.Request) -> list[Any]:
        """Opens the form with the settings of a video."""
        if not id:
            raise gr.Error("choose a video first")
        how = self.visits.find(id, request).settings
        label = "" if how["label"] is None else str(how["label"])
        values = [how["prompt"], how["model"], label, how["frames"], f"{how['width']}x{how['height']}"]
        strength = how["strength"] if how["reference"] == "clip" else gr.skip()
        values += [how["steps"], how["guidance"], how["negative_prompt"], str(how["seed"]), strength]
        return [gr.update(selected="make"), *values]

    def remove(self, id: str | None, request: gr.Request) -> Any:
        """Removes a video and lists the others."""
        if id:
            self.jobs.remove(self.visits.user(request), self.visits.find(id, request).id)
        return self.list_videos(request)
