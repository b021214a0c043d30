"""What a client may ask for, and how that becomes the settings of a video that a model can make."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vidjax.errors import printable
from vidjax.serving.limits import Limits
from vidjax.serving.refused import Refused

MAX_PROMPT = 4096  # characters
OWN = {"prompt", "label", "seed"}  # of each video of a batch
RANDOM = {"ddpm", "dpmpp_2m_sde"}
TUNE_FRAMES, TUNE_STEPS = 8, 300  # by default
CLIP_STRENGTH = 0.7  # of clips and remixes
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
RANGE = re.compile(r"(\d{1,6}):(\d{1,6})")


@dataclass(frozen=True)
class Card:
    """What the server knows of a model that a worker has loaded.

    strides: pixels per latent, (t, h, w). classes: their number, 0 for none. moves: whether it can start from a picture
    or a clip. alone: whether its videos must be made one by one, as it draws noise for a batch as a whole. strength: of
    edits; at 1 they start from the clip's inversion. tunes: "images" or "videos", what a folder that may be tuned is a
    model of; "" for what may not.
    """

    name: str
    size: tuple[int, int, int]
    fps: float
    strides: tuple[int, int, int]
    conditions: tuple[str, ...]
    classes: int
    sampler: str
    num_steps: int
    guidance_scale: float
    stages: int
    moves: bool
    alone: bool
    created: int
    strength: float = 1.0
    tunes: str = ""


class Ask(BaseModel):
    """The fields of a request for a video, as JSON or as a form.

    `size` is WIDTHxHEIGHT in pixels; `strength`, of a clip, a remix or an edit, is the share of the steps that change
    it; `label` is the class of a class-conditional model; `edit_frames`, such as 8:16, is where an edit may go.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(default="", max_length=MAX_PROMPT)
    model: str | None = Field(default=None, max_length=256)
    seconds: float | None = Field(default=None, gt=0, le=10**6)
    frames: int | None = Field(default=None, ge=1, le=10**6)
    size: str | None = Field(default=None, max_length=11)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    steps: int | None = Field(default=None, ge=1)
    guidance: float | None = Field(default=None, ge=-100, le=1000)
    negative_prompt: str = Field(default="", max_length=MAX_PROMPT)
    sampler: str | None = Field(default=None, max_length=32)
    strength: float | None = Field(default=None, gt=0, le=1)
    label: int | None = Field(default=None, ge=0)
    edit_frames: str | None = Field(default=None, max_length=16)


class TuneAsk(BaseModel):
    """The fields of a request to tune a model on a clip, or on pictures, that `prompt` describes; `samples` is a prompt
    by which the result is watched."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    model: str | None = Field(default=None, max_length=256)
    samples: str = Field(default="", max_length=MAX_PROMPT)
    frames: int | None = Field(default=None, ge=1, le=10**6)
    size: str | None = Field(default=None, max_length=11)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    steps: int | None = Field(default=None, ge=1)


AnyAsk = TypeVar("AnyAsk", bound=BaseModel)


def parse(fields: dict[str, Any], kind: type[AnyAsk] = Ask) -> AnyAsk:
    """Checks the fields of a request. Raises Refused, which names the first that is wrong."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid(message_of(error.errors()[0], kind)) from None


def message_of(error: Mapping[str, Any], kind: type[BaseModel] = Ask) -> str:
    """Says which field is wrong, and how, in one line."""
    where = printable(".".join(map(str, error["loc"])))[:80]
    known = f"; there are {', '.join(kind.model_fields)}" if error["type"] == "extra_forbidden" else ""
    return f"{where}: {error['msg']}{known}"


def settle(ask: Ask, cards: Mapping[str, Card], limits: Limits, reference: str = "") -> dict[str, Any]:
    """Fills in what a request leaves open: the settings from which a worker makes one video, always the same.

    reference: "picture", "clip", "edit" or none. Raises Refused for what the model cannot do, or is more than `limits`.
    """
    name = ask.model or next(iter(cards))
    card = find_card(name, cards)
    frames = frames_of(ask, card)
    height, width = size_of(ask.size, card)
    check_video(frames, height, width, card, limits)
    steps = ask.steps or card.num_steps
    if steps > max(limits.steps, card.num_steps):
        raise invalid(f"{steps} steps are more than the {max(limits.steps, card.num_steps)} that this server takes")
    if ask.prompt and "text" not in card.conditions:
        knows = f"classes, label 0 to {card.classes - 1}" if card.classes else "no conditions"
        raise invalid(f"{name} does not read text; it knows {knows}: leave the prompt empty")
    if ask.label is not None and ask.label >= card.classes:
        raise invalid(f"label {ask.label}: {name} knows {card.classes} classes")
    if reference and not card.moves:
        raise invalid(f"{name} starts from noise alone: leave input_reference out")
    if ask.edit_frames and reference != "edit":
        raise invalid("edit_frames is of edits: leave it out")
    strength = {"clip": CLIP_STRENGTH, "edit": card.strength}.get(reference, 1.0)
    if ask.strength is not None and reference in ("clip", "edit"):
        strength = ask.strength
    inverted = reference == "edit" and strength == 1.0
    guidance = card.guidance_scale if ask.guidance is None else ask.guidance
    if ask.negative_prompt and guidance == 1.0:
        raise invalid("negative_prompt does nothing at guidance 1; raise guidance")
    sampler = sampler_of(ask, card)
    return dict(
        model=name,
        prompt=ask.prompt,
        label=ask.label,
        frames=frames,
        height=height,
        width=width,
        fps=card.fps,
        seed=secrets.randbelow(2**31) if ask.seed is None else ask.seed,
        steps=steps,
        guidance=guidance,
        negative_prompt=ask.negative_prompt,
        sampler=sampler,
        alone=card.alone or sampler in RANDOM or bool(reference),
        strength=strength,
        total=card.stages * max(round(strength * steps), 1) + inverted * steps,
        reference=reference,
    )


def settle_tuning(ask: TuneAsk, cards: Mapping[str, Card], limits: Limits, reference: str) -> dict[str, Any]:
    """Fills in what a request to tune leaves open: the settings of the job, and later of the model.

    reference: "clip" or "pictures". Raises Refused for a model that is not tuned here, or more than `limits`.
    """
    if not limits.tune_steps:
        raise Refused(403, "not_allowed", "this server tunes no models; its owner may start it with --tune")
    tunable = {name: card for name, card in cards.items() if card.tunes}
    if not tunable:
        raise invalid("none of the models here is a folder that can be tuned")
    card = find_card(ask.model or next(iter(tunable)), tunable)
    frames = 1 if reference == "pictures" else ask.frames or (card.size[0] if card.size[0] > 1 else TUNE_FRAMES)
    height, width = size_of(ask.size, card)
    check_video(frames, height, width, card, limits)
    steps = ask.steps or min(TUNE_STEPS, limits.tune_steps)
    if steps > limits.tune_steps:
        raise invalid(f"{steps} steps are more than the {limits.tune_steps} of tuning that this server takes")
    return dict(
        model=card.name,
        prompt=ask.prompt,
        samples=ask.samples or ask.prompt,
        label=None,
        frames=frames,
        height=height,
        width=width,
        fps=card.fps,
        seed=secrets.randbelow(2**31) if ask.seed is None else ask.seed,
        steps=steps,
        guidance=card.guidance_scale,
        negative_prompt="",
        sampler=card.sampler,
        alone=True,
        strength=1.0,
        total=steps,
        reference=reference,
    )


def tuned_card(name: str, settings: Mapping[str, Any], base: Card) -> Card:
    """Describes the model that a tuning has made of another."""
    size = settings["frames"], settings["height"], settings["width"]
    return replace(base, name=name, size=size, strength=1.0, tunes="")


def check_video(frames: int, height: int, width: int, card: Card, limits: Limits) -> None:
    """Raises Refused for a video that the model cannot make, or that is more than the limits."""
    for what, value, stride in zip(("frames", "height", "width"), (frames, height, width), card.strides):
        if value % stride:
            raise invalid(f"{what} {value} is no multiple of {stride}, as {card.name} wants")
    if frames > (most := max(limits.frames, card.size[0])):
        raise invalid(f"{frames} frames are more than the {most} that this server makes")
    if height * width > (most := max(limits.pixels, card.size[1] * card.size[2])):
        raise invalid(f"{width}x{height} is more than the {most} pixels that this server makes")


def range_of(text: str, frames: int) -> tuple[int, int]:
    """Parses the frames 8:16 of a clip, the last not included. Raises Refused."""
    found = RANGE.fullmatch(text)
    if not found or not int(found[1]) < int(found[2]) <= frames:
        raise invalid(f"edit_frames {printable(text)!r} is no range of the {frames} frames; write 0:{frames}")
    return int(found[1]), int(found[2])


def together(settings: Mapping[str, Any]) -> str:
    """Returns what videos that are made at once have in common; "" for one that must be made alone."""
    if settings["alone"]:
        return ""
    return json.dumps([value for key, value in sorted(settings.items()) if key not in OWN])


def find_card(name: str, cards: Mapping[str, Card]) -> Card:
    """Finds the card of a model. Raises Refused if there is none of that name."""
    if name not in cards:
        raise Refused(404, "model_not_found", f"there is no model {printable(name)!r}; there are {', '.join(cards)}")
    return cards[name]


def frames_of(ask: Ask, card: Card) -> int:
    """Counts the frames that are asked for. Raises Refused for seconds and frames that disagree."""
    if ask.seconds is None:
        return ask.frames or card.size[0]
    stride = card.strides[0]
    frames = max(1, round(ask.seconds * card.fps / stride)) * stride
    if ask.frames not in (None, frames):
        raise invalid(f"{ask.frames} frames are not {ask.seconds:g} s at {card.fps:g} a second; leave one out")
    return frames


def size_of(size: str | None, card: Card) -> tuple[int, int]:
    """Returns (height, width). Raises Refused."""
    if size is None:
        return card.size[1:]
    found = SIZE.fullmatch(size)
    if not found or not int(found[1]) * int(found[2]):
        raise invalid(f"size {printable(size)!r} is not WIDTHxHEIGHT in pixels, such as 256x256")
    return int(found[2]), int(found[1])


def sampler_of(ask: Ask, card: Card) -> str:
    """Returns the sampler's name. Raises Refused if there is none of that name."""
    from vidjax.diffusion.samplers import SAMPLERS

    if ask.sampler is not None and ask.sampler not in SAMPLERS:
        raise invalid(f"sampler {printable(ask.sampler)!r}; there are {', '.join(SAMPLERS)}")
    return ask.sampler or card.sampler


def invalid(message: str) -> Refused:
    """What is said of a request that cannot be done."""
    return Refused(400, "invalid_request", message)
