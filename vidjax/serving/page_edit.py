"""The page's tab for edits: a clip, a mask that is drawn on it, prompts and their results side by side."""

import io
from collections.abc import AsyncIterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from starlette.concurrency import run_in_threadpool

from vidjax.data.animation import encode_animation
from vidjax.data.video_reading import BrokenClip
from vidjax.serving import uploads
from vidjax.serving.jobs import Job
from vidjax.serving.page_inputs import bound_drawing, bound_files
from vidjax.serving.reading import decode
from vidjax.serving.refused import Refused
from vidjax.serving.visits import Visits, length_of, show_picture

MAX_PROMPTS = 4  # at a time
DRAWN = 384  # pixels of the longer side that is drawn on, at least


class EditTab:
    """Lays out the tab, and does what its buttons ask for."""

    def __init__(self, visits: Visits):
        self.visits = visits

    def build(self) -> gr.Dropdown:
        """Lays the tab out; returns the choice of the model."""
        cards, limits = self.visits.orders.cards, self.visits.jobs.limits
        card = next((each for each in cards.values() if each.moves), next(iter(cards.values())))
        frames, height, width = card.size
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Clip", type="binary", file_types=["video"], height=130)
                prompts = gr.Textbox("", label=f"Prompts, one a line, up to {MAX_PROMPTS}", lines=3)
                drawn = gr.ImageEditor(
                    label="Paint where the edit may go; nothing painted: everywhere",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(default_size=24, colors=["#ff3b6b"], color_mode="fixed"),
                    height=360,
                )
                bound_files(file, 1, limits.upload)
                bound_drawing(drawn)
                box = gr.Textbox(
                    "", label="Or a box: left top right bottom, in % of the frame", placeholder="0 0 50 100"
                )
                span = gr.Textbox("", label="Frames that may change (empty: all)", placeholder=f"0:{frames}")
                with gr.Row():
                    start = gr.Button("Edit", variant="primary", min_width=100)
                    stop = gr.Button("Stop", min_width=100)
                with gr.Accordion("Settings", open=False):
                    model = gr.Dropdown(list(cards), value=card.name, label="Model")
                    length = gr.Slider(label="Frames", **length_of(card, limits.frames))
                    size = gr.Textbox(f"{width}x{height}", label="Width x height")
                    how = "How much may change; 1: from the clip's inversion"
                    strength = gr.Slider(0.05, 1, card.strength, step=0.05, label=how)
                    steps = gr.Slider(1, max(limits.steps, card.num_steps), card.num_steps, step=1, label="Steps")
                    guidance = gr.Slider(0, 20, card.guidance_scale, step=0.1, label="Guidance")
                    seed = gr.Textbox("", label="Seed (empty: a new one)")
            with gr.Column():
                ids, said, shown = gr.State([]), gr.Markdown(), gr.HTML()
        sized = [model, length, size]
        fields = [file, prompts, drawn, box, span, *sized, strength, steps, guidance, seed]
        how = dict(api_visibility="private", show_progress="hidden")
        start.click(self.edit, fields, [ids, said, shown], **how)
        stop.click(self.stop, ids, said, api_visibility="private")
        file.change(self.open, [file, model, size], drawn, **how)
        model.input(self.choose, model, [length, size, strength, steps, guidance], api_visibility="private")
        return model

    async def open(self, content: bytes | None, model: str, size: str, request: gr.Request) -> Any:
        """Puts the clip's first frame, as the model gets it, under the brush."""
        if not content:
            return None
        try:
            hw = self.visits.size(model, size, request)
            frame = (await uploads.read_aside(lambda: uploads.read_upload(content, 1, hw)))[0]
        except Refused as refused:
            raise gr.Error(refused.message) from None
        scale = max(1, -(-DRAWN // max(hw)))
        return {"background": frame.repeat(scale, 0).repeat(scale, 1), "layers": [], "composite": None}

    async def edit(
        self,
        content: bytes | None,
        prompts: str,
        drawn: list[Path],
        box: str,
        span: str,
        model: str,
        frames: int,
        size: str,
        strength: float,
        steps: int,
        guidance: float,
        seed: str,
        request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Asks for an edit per prompt, and yields their ids, a line about them, and how they look by now."""
        user, asked = self.visits.user(request), [line.strip() for line in (prompts or "").splitlines() if line.strip()]
        if not 0 < len(asked) <= MAX_PROMPTS:
            raise gr.Error(f"write one to {MAX_PROMPTS} prompts, each on a line")
        given = dict(model=model, frames=int(frames), size=size.replace(" ", ""), steps=int(steps), guidance=guidance)
        given |= dict(strength=strength) | ({"edit_frames": span.strip()} if (span or "").strip() else {})
        given |= {"seed": seed.strip()} if (seed or "").strip() else {}
        jobs: list[Job] = []
        try:
            hw = self.visits.size(model, size, request)
            mask = await uploads.read_aside(lambda: find_mask(drawn, box, hw))
            for prompt in asked:
                fields = {**given, "prompt": prompt}
                order = lambda fields=fields: self.visits.orders.edit(user, fields, content, mask)
                jobs.append(await uploads.read_aside(order))
                given["seed"] = jobs[0].settings["seed"]  # side by side they start alike
        except Refused as refused:
            self.visits.stop([job.id for job in jobs], request)
            raise gr.Error(refused.message) from None
        ids = [job.id for job in jobs]
        source = await uploads.read_aside(lambda: show_clip(content or b"", jobs[0].settings))
        async for found in self.visits.follow(user, ids):
            lines = dict.fromkeys(line for _, line in found)
            yield ids, "; ".join(lines), await run_in_threadpool(self._lay_out, source, found)

    def _lay_out(self, source: str, found: list[tuple[Job, str]]) -> str:
        figures = [figure(source, "the clip")]
        for job, line in found:
            figures.append(figure(self.visits.show(job), f"{job.settings['prompt'][:80]}: {line}"))
        return f'<div class="beside">{"".join(figures)}</div>'

    def stop(self, ids: list[str], request: gr.Request) -> str:
        """Cancels the edits that are being made."""
        return self.visits.stop(ids, request)

    def choose(self, name: str, request: gr.Request) -> list[Any]:
        """Sets the form to what another model makes by default."""
        card, limits = self.visits.card(name, request), self.visits.jobs.limits
        steps = gr.update(value=card.num_steps, maximum=max(limits.steps, card.num_steps))
        length = gr.update(**length_of(card, limits.frames))
        return [length, f"{card.size[2]}x{card.size[1]}", card.strength, steps, card.guidance_scale]


def show_clip(content: bytes, how: dict[str, Any]) -> str:
    """Shows a clip as an edit with these settings begins from it."""
    frames = uploads.read_upload(content, how["frames"], (how["height"], how["width"]))
    return show_picture(encode_animation(frames, how["fps"], "WEBP"), "the clip")


def figure(content: str, words: str) -> str:
    """Makes a figure with a line below it."""
    return f"<figure>{content}<figcaption>{escape(words)}</figcaption></figure>"


def find_mask(drawn: Sequence[Path], box: str, size: tuple[int, int]) -> bytes | None:
    """Returns a mask, white where a layer that was drawn is painted or in the box, as a PNG; None if there is neither.
    Raises gr.Error for a box that is none, layers that can't be read, and such of several sizes."""
    if (box or "").strip():
        return encode_mask(inside(box, size))
    try:
        layers = [decode(file.read_bytes(), "RGBA")[0, :, :, 3] > 0 for file in drawn]
    except BrokenClip as error:
        raise gr.Error(f"what was painted can't be read: {error}") from None
    if len({layer.shape for layer in layers}) > 1:
        raise gr.Error("the layers that were painted have several sizes: paint again")
    painted = np.any(layers, axis=0) if layers else np.zeros(size, bool)
    return encode_mask(painted) if painted.any() else None


def inside(box: str, size: tuple[int, int]) -> np.ndarray:
    """Makes the mask of a box in percent: left top right bottom. Raises gr.Error."""
    try:
        left, top, right, bottom = (float(part.strip("%")) / 100 for part in box.replace(",", " ").split())
    except ValueError:
        raise gr.Error(f"the box {box[:40]!r} is not four numbers: left top right bottom, such as 0 0 50 100") from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise gr.Error("a box has left before right, top before bottom, all from 0 to 100")
    mask, (height, width) = np.zeros(size, bool), size
    mask[int(top * height) : round(bottom * height), int(left * width) : round(right * width)] = True
    return mask


def encode_mask(mask: np.ndarray) -> bytes:
    """Encodes a mask as a PNG in black and white."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return file.getvalue()
