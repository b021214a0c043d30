"""What a client may ask for, and how that becomes the settings of a video that a model can make."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vidjax.errors import printable
from vidjax.serving.limits import Limits
from vidjax.serving.refused import Refused

MAX_PROMPT = 4096  # characters
OWN = {"prompt", "label", "seed"}  # of each video of a batch
RANDOM = {"ddpm"}
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True)
class Card:
    """What the server knows of a model that a worker has loaded.

    strides: pixels per latent, (t, h, w). classes: their number, 0 for none. moves: whether it can start from a picture
    or a clip. alone: whether its videos must be made one by one, as it draws noise for a batch as a whole.
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


class Ask(BaseModel):
    """The fields of a request for a video, as JSON or as a form.

    `size` is WIDTHxHEIGHT in pixels; `strength`, of a clip or a remix, is the share of the steps that change it;
    `label` is the class of a class-conditional model.
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
    strength: float = Field(default=0.7, gt=0, le=1)
    label: int | None = Field(default=None, ge=0)


def parse(fields: dict[str, Any]) -> Ask:
    """Checks the fields of a request. Raises Refused, which names the first that is wrong."""
    try:
        return Ask.model_validate(fields)
    except ValidationError as error:
        raise invalid(message_of(error.errors()[0])) from None


def message_of(error: Mapping[str, Any]) -> str:
    """Says which field is wrong, and how, in one line."""
    where = printable(".".join(map(str, error["loc"])))[:80]
    known = f"; there are {', '.join(Ask.model_fields)}" if error["type"] == "extra_forbidden" else ""
    return f"{where}: {error['msg']}{known}"


def settle(ask: Ask, cards: Mapping[str, Card], limits: Limits, reference: str = "") -> dict[str, Any]:
    """Fills in what a request leaves open: the settings from which a worker makes one video, always the same.

    reference: "picture", "clip" or none. Raises Refused for what the model cannot do, or is more than `limits`.
    """
    name = ask.model or next(iter(cards))
    card = find_card(name, cards)
    frames = frames_of(ask, card)
    height, width = size_of(ask, card)
    strides = dict(zip(("frames", "height", "width"), card.strides))
    for what, value in (("frames", frames), ("height", height), ("width", width)):
        if value % strides[what]:
            raise invalid(f"{what} {value} is no multiple of {strides[what]}, as {name} wants")
    if frames > max(limits.frames, card.size[0]):
        raise invalid(f"{frames} frames are more than the {max(limits.frames, card.size[0])} that this server makes")
    if height * width > (most := max(limits.pixels, card.size[1] * card.size[2])):
        raise invalid(f"{width}x{height} is more than the {most} pixels that this server makes")
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
    strength = ask.strength if reference == "clip" else 1.0
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
        total=card.stages * max(round(strength * steps), 1),
        reference=reference,
    )


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


def size_of(ask: Ask, card: Card) -> tuple[int, int]:
    """Returns (height, width). Raises Refused."""
    if ask.size is None:
        return card.size[1:]
    found = SIZE.fullmatch(ask.size)
    if not found or not int(found[1]) * int(found[2]):
        raise invalid(f"size {printable(ask.size)!r} is not WIDTHxHEIGHT in pixels, such as 256x256")
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
