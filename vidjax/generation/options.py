"""What may be asked of a generator: the options of sampling, the subjects of a video, and the checks of both."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from vidjax.diffusion.samplers import SAMPLERS, Sampler
from vidjax.diffusion.schedule import SPACINGS
from vidjax.errors import InputError, check_range
from vidjax.models.parameters import Params
from vidjax.settings import choose, construct

CAPACITY = 1000  # steps that one compiled sampler serves
SMALLER = "take fewer frames, a smaller height and width, or fewer prompts at a time"

Prompts = Sequence[str | int]  # captions, or for a class model numbers, -1 for none
Report = Callable[[ArrayLike], None]  # is called with the number of steps done
Look = Callable[[ArrayLike, ArrayLike], None]  # is called with that and the clean latents that are predicted there
Shape = tuple[int, ...]
Latents = Array | np.ndarray  # [b, t, h, w, c]
Masked = tuple[Latents, Array | np.ndarray]  # latents and a mask of them


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Defaults of a recipe's sampling; every call may override them."""

    sampler: str = "ddim"
    num_steps: int = 50
    guidance_scale: float = 1.0
    negative_prompt: str = ""  # what guidance steers away from
    suffix: str = ""  # is added to every prompt, but not to the negative one
    rescale: float = 0.0
    eta: float = 0.0
    spacing: str | None = None
    per_caption: int = 1
    fps: float = 15.0
    prompts: str = ""  # of edits, or in place of the data set's captions, with ; between them
    invert: bool = True  # edits start from the inverted clip, not from noise
    null_text: int = 0  # updates per step of null-text inversion, under the clip's own prompt (theirs: 10)
    blend: tuple[float, ...] = ()  # weights of the inversions of the first so many clips
    strength: float = 1.0  # below 1, edits start from the clip under noise, this share of the steps from clean
    mask: str = ""  # a picture of the clip's size, white where edits may go
    edit_frames: str = ""  # such as 8:16, where edits may go
    chunk: int | None = None  # longer clips are sampled in chunks of so many latent frames
    overlap: int = 4
    tile: tuple[int, int, int] | None = None  # latents (t, h, w) that are encoded or decoded at once
    tile_overlap: tuple[int, int, int] = (4, 8, 8)  # in latents; see vidjax.generation.tiles
    known: int = 1  # latent frames that each part of a long video takes from the one before
    known_level: float = 0.0  # quantile of the training times at whose noise the network sees known frames
    frame_guidance: float = 1.0  # away from the prediction without known frames
    lowres_level: float = 0.3  # quantile of the training times at whose noise a cascade's stage sees the one before
    reconstruction: float = 2.0  # for models without frame masks: how strongly known frames pull at the others
    first_guidance: float | None = None  # of the first frame, from which it rises evenly to guidance_scale
    motion_bucket: float = 127.0  # what a model that moves a picture is told of the motion, 0 to 255
    picture_noise: float = 0.02  # standard deviation of the noise on the picture, in pixels from -1 to 1
    control_scale: float = 1.0  # what a ControlNet finds counts so much
    decode_frames: int | None = None  # decoded at once by a decoder that looks over time; default: all

    def complete(self, prompts: Prompts) -> Prompts:
        """Adds `suffix` to the captions among prompts."""
        return [f"{prompt}{self.suffix}" if isinstance(prompt, str) else prompt for prompt in prompts]

    @property
    def prompt_list(self) -> list[str]:
        """The prompts one by one."""
        return [prompt.strip() for prompt in self.prompts.split(";") if prompt.strip()]

    @property
    def chunks(self) -> tuple[int, int] | None:
        """(frames, overlap) of chunks, if there are any."""
        return (self.chunk, self.overlap) if self.chunk else None

    @property
    def guides(self) -> bool:
        """Whether any frame is guided."""
        return self.guidance_scale != 1.0 or self.first_guidance not in (None, 1.0)

    def guidance(self, frames: int) -> float | Float[np.ndarray, " t"]:
        """The guidance scale: a number, or one per frame where it rises."""
        if self.first_guidance is None:
            return self.guidance_scale
        return np.linspace(self.first_guidance, self.guidance_scale, frames, dtype=np.float32)

    def __post_init__(self):
        choose(self.sampler, SAMPLERS, "sampler")
        if self.spacing is not None:
            choose(self.spacing, {name: None for name in SPACINGS}, "sample.spacing")
        check_range(
            "sample.", 1, num_steps=self.num_steps, per_caption=self.per_caption, chunk=self.chunk, tile=self.tile
        )
        check_range("sample.", 1, decode_frames=self.decode_frames)
        check_range("sample.", -100, 1000, guidance_scale=self.guidance_scale, frame_guidance=self.frame_guidance)
        check_range("sample.", -100, 1000, first_guidance=self.first_guidance)
        check_range("sample.", 0, 1000, reconstruction=self.reconstruction)
        check_range("sample.", 0, 255, motion_bucket=self.motion_bucket)
        check_range("sample.", 0, 10, picture_noise=self.picture_noise, control_scale=self.control_scale)
        check_range("sample.", 0, 1, rescale=self.rescale, eta=self.eta, known_level=self.known_level)
        if not 0.1 <= self.fps <= 1000:
            raise InputError(f"sample.fps={self.fps} is not between 0.1 and 1000 frames per second")
        if not 0 < self.strength <= 1:
            raise InputError(f"sample.strength={self.strength} is not above 0 and up to 1")
        for other, on in (("null_text", self.null_text), ("blend", self.blend)):
            if on and (not self.invert or self.strength < 1):
                raise InputError(f"sample.{other} works on inversions: set sample.invert=True and sample.strength=1")
        if self.chunk and self.first_guidance is not None:
            raise InputError("sample.first_guidance is of videos sampled at once: leave it or sample.chunk out")
        if self.null_text and self.blend:
            raise InputError("sample.null_text and sample.blend cannot be used at once; leave one out")
        if self.chunk is not None and not 0 <= self.overlap < self.chunk:
            raise InputError(f"chunks of {self.chunk} frames cannot overlap by {self.overlap}; change sample.overlap")


@dataclasses.dataclass(frozen=True)
class Subject:
    """One of several in a video: its prompt, and parameters if not the model's own, act where `mask` is true.

    The mask is of latents; one of a single frame is that of all frames.
    """

    prompt: str | int
    mask: Bool[np.ndarray, "t h w"]
    params: Params | None = None


def with_options(defaults: SampleConfig, options: Mapping[str, Any]) -> SampleConfig:
    """Overrides the defaults by fields of SampleConfig. Raises InputError for what cannot be sampled."""
    how = dataclasses.replace(defaults, **options)
    make_sampler(how.sampler, how.eta)
    if not 1 <= how.num_steps <= CAPACITY:
        raise InputError(f"num_steps {how.num_steps} is not between 1 and {CAPACITY}")
    if how.negative_prompt and not how.guides:
        raise InputError(
            f"negative_prompt {how.negative_prompt!r} does nothing at guidance_scale 1; raise guidance_scale"
        )
    return how


def make_sampler(name: str, eta: float = 0.0) -> Sampler:
    """Makes a sampler by name; only DDIM and dpmpp_2m_sde take an `eta`. Raises InputError."""
    make = choose(name, SAMPLERS, "sampler")
    return construct(make, {"eta": eta} if eta else {}, f"sample (sampler {name})")


def after(done: int, progress: Report | None) -> Report | None:
    """Makes a report that counts on from `done` steps."""
    return None if progress is None else lambda steps: progress(done + steps)


def check_noise(noise: Latents, shape: Shape) -> None:
    """Raises InputError unless the noise to start from has this shape and is finite."""
    if noise.shape != shape:
        raise InputError(f"the noise has shape {noise.shape}, these videos start from {shape}; change either")
    if not np.isfinite(noise).all():
        raise InputError("the noise to start from has values that are not finite (NaN or infinity)")


def check_known(known: Masked | None, shape: Shape, chunk: int | None) -> None:
    """Raises InputError unless known frames, and a mask of each, fit latents of this shape, sampled in one piece."""
    if known is not None and (known[0].shape != shape or known[1].shape != shape[1:2] or chunk):
        raise InputError(
            f"known frames are {known[0].shape}, these videos are {shape}: make them alike, and leave sample.chunk out"
        )


def check_subject(subject: Subject, shape: Shape) -> None:
    """Raises InputError unless the subject's mask fits latents of this shape [t, h, w, c]."""
    t, h, w, _ = shape
    if subject.mask.shape not in ((t, h, w), (1, h, w)):
        raise InputError(f"the mask of {subject.prompt!r} is {subject.mask.shape}, the latents are {(t, h, w)}")


def check_finite(videos: Latents, finite: Bool[np.ndarray, " b"]) -> None:
    """Raises InputError unless all videos are finite."""
    if not np.all(finite):
        raise InputError(
            f"{int(np.sum(~finite))} of {len(finite)} videos came out as NaN or infinity, none is written: the weights "
            "are damaged, or guidance_scale, a LoRA's weight or init_noise is too large"
        )
