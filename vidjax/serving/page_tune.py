"""The page's tab for tuning: a clip or pictures, the loss and samples while a model learns them, and the models."""

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import pandas as pd
from starlette.concurrency import run_in_threadpool

from vidjax.serving import uploads
from vidjax.serving.jobs import DONE, RUNNING, TUNE, WAITING, Job
from vidjax.serving.keys import User
from vidjax.serving.orders import MAX_TUNED
from vidjax.serving.page_inputs import bound_files
from vidjax.serving.refused import Refused
from vidjax.serving.requests import TUNE_FRAMES, TUNE_STEPS
from vidjax.serving.tuner import read_curve
from vidjax.serving.visits import Visits, length_of, name_of


class TuneTab:
    """Lays out the tab, and does what its buttons ask for."""

    def __init__(self, visits: Visits):
        self.visits = visits
        self.cards = {name: card for name, card in visits.orders.cards.items() if card.tunes}

    def build(self, tab: gr.Tab) -> gr.State:
        """Lays the tab out; returns what changes when there is another model, or one less."""
        limits, card = self.visits.jobs.limits, next(iter(self.cards.values()))
        with gr.Row():
            with gr.Column():
                files = gr.File(label="A clip, or pictures", type="binary", file_count="multiple", height=130)
                bound_files(files, uploads.MAX_PICTURES, limits.upload)
                prompt = gr.Textbox("", label="What they show", placeholder="a man is skiing")
                samples = gr.Textbox("", label="A prompt to watch it learn by (empty: the same)")
                steps = gr.Slider(1, limits.tune_steps, min(TUNE_STEPS, limits.tune_steps), step=1, label="Steps")
                with gr.Row():
                    start = gr.Button("Tune", variant="primary", min_width=100)
                    stop = gr.Button("Stop", min_width=100)
                with gr.Accordion("Settings", open=False):
                    model = gr.Dropdown(list(self.cards), value=card.name, label="Model to begin with")
                    offered = length_of(card, limits.frames)
                    offered["value"] = card.size[0] if card.size[0] > 1 else min(TUNE_FRAMES, offered["maximum"])
                    length = gr.Slider(label="Frames of a clip", **offered)
                    size = gr.Textbox(f"{card.size[2]}x{card.size[1]}", label="Width x height")
            with gr.Column():
                ids, said = gr.State([]), gr.Markdown()
                curve = gr.LinePlot(x="step", y="loss", height=220, visible=False)
                shown, changed = gr.HTML(), gr.State(0)
                models = gr.Radio([], label="Your models")
                remove = gr.Button("Remove this model", variant="stop")
        outputs = [ids, said, curve, shown, changed]
        how = dict(api_visibility="private", show_progress="hidden")
        start.click(self.tune, [files, prompt, samples, steps, model, length, size], outputs, **how)
        tab.select(self.resume, None, outputs, **how)
        tab.select(self.list_models, None, models, **how)
        changed.change(self.list_models, None, models, **how)
        stop.click(self.stop, ids, said, api_visibility="private")
        remove.click(self.remove, models, changed, api_visibility="private")
        return changed

    async def tune(
        self,
        contents: list[bytes] | None,
        prompt: str,
        samples: str,
        steps: int,
        model: str,
        frames: int,
        size: str,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Asks for a model, and yields its id, a line about it, its loss and its samples by now."""
        user = self.visits.user(request)
        fields = dict(prompt=(prompt or "").strip(), samples=(samples or "").strip(), steps=int(steps), model=model)
        fields |= dict(frames=int(frames), size=size.replace(" ", ""))
        try:
            order = lambda: self.visits.orders.tune(user, fields, contents or [])
            job = await uploads.read_aside(order)
        except Refused as refused:
            raise gr.Error(refused.message) from None
        async for shown in self._watch(user, job):
            yield shown

    async def resume(self, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """Watches the model that is being tuned, if there is one."""
        user = self.visits.user(request)
        for job in await run_in_threadpool(self._jobs, user):
            if job.status in (WAITING, RUNNING):
                async for shown in self._watch(user, job):
                    yield shown

    async def _watch(self, user: User, job: Job) -> AsyncIterator[tuple[Any, ...]]:
        async for found in self.visits.follow(user, [job.id]):
            for each, line in found:
                points = await run_in_threadpool(read_curve, self.visits.jobs.folder(job.id))
                curve = pd.DataFrame(points, columns=pd.Index(["step", "loss"]))
                picture = await run_in_threadpool(self.visits.show, each)
                ready = each.status == DONE
                line += ": choose it as the model in Make or Edit" if ready else ""
                yield (
                    [job.id],
                    line,
                    gr.update(value=curve, visible=bool(points)),
                    picture or gr.skip(),
                    each.number if ready else gr.skip(),
                )

    def _jobs(self, user: User) -> list[Job]:
        return self.visits.jobs.list(user, MAX_TUNED, None, True, TUNE)[0]

    def stop(self, ids: list[str], request: gr.Request) -> str:
        """Ends the tuning."""
        return self.visits.stop(ids, request)

    def list_models(self, request: gr.Request) -> Any:
        """Lists the models that the user has tuned as choices."""
        found = self._jobs(self.visits.user(request))
        return gr.update(choices=[(name_of(job.settings), job.id) for job in found if job.status == DONE], value=None)

    def remove(self, id: str | None, request: gr.Request) -> Any:
        """Removes a model."""
        if not id:
            raise gr.Error("choose a model first")
        job = self.visits.find(id, request)
        self.visits.jobs.remove(self.visits.user(request), id)
        return -job.number
