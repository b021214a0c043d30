"""Samples videos from a trained run, or from a folder of other people's weights:

`python -m vidjax.sample --workdir W --prompt "..." --out DIR`, with `--pretrained FOLDER` in place of `--workdir`.
"""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from vidjax import cli
from vidjax.errors import InputError, check_range, printable
from vidjax.runtime.outputs import open_file, open_folder
from vidjax.runtime.storage import AnyPath, parse_local, parse_path, whole_file

if TYPE_CHECKING:
    import numpy as np
    from jax import Array

    from vidjax.generation.cascade import AnyGenerator, Cascade

WORKDIR = flags.DEFINE_string("workdir", None, "The run to sample from.")
PRETRAINED = flags.DEFINE_string(
    "pretrained", None, "Or other people's weights: a folder of diffusers, or one safetensors file."
)
MOTION_ADAPTER = flags.DEFINE_string(
    "motion_adapter",
    None,
    "AnimateDiff's motion modules for --pretrained, a Stable Diffusion 1: a MotionAdapter folder, or a file of theirs.",
)
CONTROL = flags.DEFINE_string(
    "control", None, "SparseCtrl or a ControlNet for --pretrained, a folder of diffusers: --image steers the video."
)
REFINE = flags.DEFINE_string(
    "refine", None, "A second model, which makes the video larger: the file of I2VGen-XL's second stage, in its folder."
)
REFINE_SIZE = flags.DEFINE_list("refine_size", None, "HEIGHT,WIDTH that --refine makes of it; default: 720,1280.")
CONTROL_SCALE = flags.DEFINE_float("control_scale", None, "How much --control counts; default: 1.")
INFLATE = flags.DEFINE_string("inflate", None, "What frames of an image folder see: tuned, zero_shot.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the parameters of a folder.")
NORM_OVER = flags.DEFINE_enum(
    "norm_over",
    None,
    ["frame", "clip"],
    "What residual blocks of a folder take their norms over; default: what its class does.",
)
LORA = flags.DEFINE_multi_string(
    "lora", [], "FILE.safetensors or FILE:WEIGHT, adapters in the layout of diffusers; several add up."
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "A caption; give the flag several times for several videos.")
NEGATIVE_PROMPT = flags.DEFINE_string("negative_prompt", None, "What guidance steers away from.")
SUBJECT = flags.DEFINE_multi_string(
    "subject",
    [],
    "PROMPT|MASK.png|LORA[:WEIGHT], the last part optional: what is where the mask is white; --prompt is elsewhere.",
)
IMAGE = flags.DEFINE_multi_string(
    "image",
    [],
    "A picture that the video begins with, or shows at --image_at, or by which --control steers it; give the flag "
    "several times for several videos.",
)
VIDEO = flags.DEFINE_multi_string(
    "video",
    [],
    "A finished clip that --pretrained, the file of I2VGen-XL's second stage, makes larger; give it several times for "
    "several clips.",
)
IMAGE_AT = flags.DEFINE_list(
    "image_at", None, "Frames that --image are, such as 0,15, so many for each video; default: 0. -1 is the last one."
)
MOTION_BUCKET = flags.DEFINE_float(
    "motion_bucket", None, "Stable Video Diffusion: how much moves, 0 to 255; default: 127."
)
IMAGE_NOISE = flags.DEFINE_float("image_noise", None, "Stable Video Diffusion: noise on --image; default: 0.02.")
PICTURE_TWICE = flags.DEFINE_bool(
    "picture_twice", None, "I2VGen-XL: whether the picture counts twice beside each frame, as its training had it."
)
FPS = flags.DEFINE_float("fps", None, "Frames per second of the video; some models are told; default: the recipe's.")
DECODE_FRAMES = flags.DEFINE_integer(
    "decode_frames",
    None,
    "Decode so many latent frames at once: less memory, but where the decoder looks over time it sees no further; "
    "default: all.",
    lower_bound=1,
)
LABEL = flags.DEFINE_multi_integer("label", [], "A class number, for class-conditional models.")
FRAMES = flags.DEFINE_integer(
    "frames", None, "Frames of the video; default: as trained, 1 for a folder that does not say.", lower_bound=1
)
HEIGHT = flags.DEFINE_integer("height", None, "Height in pixels; default: as trained.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", None, "Width in pixels; default: as trained.", lower_bound=1)
SAMPLER = flags.DEFINE_string(
    "sampler",
    None,
    "ddpm, ddim, pndm, euler, heun, dpmpp_2m, dpmpp_2m_sde or unipc; default: the recipe's, or the folder's.",
)
SPACING = flags.DEFINE_string(
    "spacing", None, "leading, trailing, linspace, karras or logsnr; default: the recipe's, or the folder's."
)
KARRAS = flags.DEFINE_bool("karras", False, "Short for --spacing=karras (Karras et al. 2022).")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps of the sampler.")
GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", None, "1: none.")
FIRST_GUIDANCE = flags.DEFINE_float(
    "first_guidance", None, "That of the first frame, from which it rises to --guidance_scale at the last one."
)
RESCALE = flags.DEFINE_float("rescale", None, "Share by which guidance keeps the contrast (Lin et al. 2024): 0 to 1.")
ETA = flags.DEFINE_float("eta", None, "Noise of DDIM: 0 none, 1 as DDPM; or of dpmpp_2m_sde, 1 by default.")
SEED = flags.DEFINE_integer(
    "seed", 0, "Noise: the same seed gives the same video.", lower_bound=0, upper_bound=2**63 - 1
)
WATERMARK = flags.DEFINE_bool("watermark", True, "Mark the videos invisibly (see vidjax.watermark).")
MOTION = flags.DEFINE_list(
    "motion", None, "Text2Video-Zero: down,right in pixels a frame; for --inflate=zero_shot, without training."
)
INIT_NOISE = flags.DEFINE_string("init_noise", None, "Standard normal noise to start from: npy, [b, t, h, w, c].")
SAVE_LATENTS = flags.DEFINE_string(
    "save_latents", None, "Where to write what is decoded: npy, float32 [b, t, h, w, c]."
)
KNOWN = flags.DEFINE_integer(
    "known",
    None,
    "Long videos: each clip knows so many latent frames of the one before; default: the recipe's, if its model learned "
    "frame masks and --frames are more than it was trained on.",
    lower_bound=1,
)
LEVELS = flags.DEFINE_integer("levels", 0, "Long videos: so many times fill what lies between two.", lower_bound=0)
BETWEEN = flags.DEFINE_string("between", None, "The run that fills them, on the same latents; default: --workdir.")
ALL_STAGES = flags.DEFINE_bool("all_stages", False, "Cascades: also write what each stage below made, OUT/TxHxW.")
OF_OTHERS = (MOTION, SUBJECT, KNOWN, LEVELS, BETWEEN)  # flags of videos that begin with no file
OUT = flags.DEFINE_string("out", None, "Folder for the videos and contact sheets; default: WORKDIR/more, or more.")
FORMAT = flags.DEFINE_enum("format", "mp4", ["mp4", "gif", "webp"], "Of the videos: H.264, or an animated picture.")


def main() -> None:
    """Samples a video per prompt or label and writes them. Raises InputError."""
    check_flags()
    import numpy as np

    from vidjax.generation.adapters import merge_lora_files
    from vidjax.generation.cascade import Cascade
    from vidjax.generation.pictures import default_size, fit_pictures, read_clips, read_pictures

    out = open_folder(OUT.value or (f"{WORKDIR.value}/more" if WORKDIR.value else "more"))
    saved = open_file(SAVE_LATENTS.value, "--save_latents") if SAVE_LATENTS.value else None
    pictures = read_pictures(IMAGE.value)
    generator = make_generator()
    check_pictures(generator)
    clips, rate = read_clips(VIDEO.value, FRAMES.value) if VIDEO.value else ([], 0.0)
    if LORA.value:
        generator.params = merge_lora_files(generator, LORA.value)
    prompts: list[str | int] = [*PROMPT.value, *LABEL.value] or [""] * max(len(sources()), 1)
    options = given_options()
    size = (HEIGHT.value or generator.size[1], WIDTH.value or generator.size[2])
    if shown := [*pictures, *(clip[0] for clip in clips)]:
        size = default_size(shown[0], (generator.size[1], generator.size[2]), HEIGHT.value, WIDTH.value)
    if ALL_STAGES.value and not (REFINE.value or isinstance(generator, Cascade)):
        raise InputError("--all_stages is for cascades, this model makes its videos alone; leave it out")
    if is_long(generator):
        return write_long(generator, prompts, size, options, parse_local(os.fspath(out)))
    arrays = given_arrays(generator, size)
    if pictures:
        whole = getattr(generator.model.embedders.get("picture"), "whole", False)
        arrays |= {"pictures": pictures if whole else fit_pictures(pictures, size), "picture_at": image_at()}
    if clips:
        generator.size, options = (len(clips[0]), *size), {"fps": rate, **options}
        arrays["lowres"] = np.stack([fit_pictures(list(clip), size) for clip in clips])
    trained, chunk = generator.size[0], generator.defaults.chunk
    if WORKDIR.value and not chunk and (FRAMES.value or 0) > trained:
        print(
            f"warning: --frames={FRAMES.value}, this model was trained on {trained}: longer videos of it tend to be "
            "still and grainy; --known=1 makes them clip by clip",
            file=sys.stderr,
        )
    if REFINE.value:
        options = {"fps": generator.defaults.fps, **options}
        generator, size = refined(generator, size)
    began = time.perf_counter()
    if ALL_STAGES.value and isinstance(generator, Cascade):
        arrays["lowres"] = write_stages(generator, prompts, size, options, arrays, out)
    latents = sample_latents(generator, prompts, size, options, arrays)
    if saved:
        save_latents(latents, saved)
    videos = generator.decode(latents, DECODE_FRAMES.value, arrays.get("pictures"))
    fps = options.get("fps", generator.defaults.fps)
    write_videos(generator, prompts, videos, fps, options, out)
    print(f"{len(prompts)} in {time.perf_counter() - began:.1f} s")


def check_flags() -> None:
    """Raises InputError for flags that do not go together."""
    if bool(WORKDIR.value) == bool(PRETRAINED.value):
        raise InputError("name either a run that vidjax.main has trained, --workdir, or a folder, --pretrained")
    for flag in (INFLATE, NORM_OVER, MOTION_ADAPTER, CONTROL, PICTURE_TWICE):
        if WORKDIR.value and flag.value is not None:
            raise InputError(f"--{flag.name} is for --pretrained; a run has layers of its own")
    if KARRAS.value and SPACING.value not in (None, "karras"):
        raise InputError(f"--karras and --spacing={SPACING.value} are two spacings; leave one out")
    if MOTION.value and (INIT_NOISE.value or (FRAMES.value or 1) < 2):
        raise InputError("--motion makes its own noise (leave --init_noise out) and wants --frames=2 or more")
    if MOTION.value and SUBJECT.value:
        raise InputError("--motion moves the whole picture; leave --subject out")
    if (told := told_of_motion()) and not IMAGE.value:
        raise InputError(f"--{told[0].name} says how a picture moves; name the picture, --image")
    if MOTION.value and FIRST_GUIDANCE.value is not None:
        raise InputError("--first_guidance is of videos without --motion; leave one out")
    if IMAGE.value and (others := [flag for flag in OF_OTHERS if flag.value]):
        raise InputError(f"--image moves one picture; leave --{others[0].name} out")
    if VIDEO.value and (others := [flag for flag in (*OF_OTHERS, IMAGE, REFINE) if flag.value]):
        raise InputError(f"--video makes a finished clip larger; leave --{others[0].name} out")
    if REFINE.value and (others := [flag for flag in (MOTION, SUBJECT, INIT_NOISE) if flag.value]):
        raise InputError(f"--refine makes a video of a prompt or a picture larger; leave --{others[0].name} out")
    if REFINE_SIZE.value and not REFINE.value:
        raise InputError("--refine_size says how large a second model makes the video; name the model, --refine")
    if CONTROL_SCALE.value is not None and not CONTROL.value:
        raise InputError("--control_scale says how much a network counts; name the network, --control")
    if IMAGE_AT.value and not IMAGE.value:
        raise InputError("--image_at says which frames pictures are; name the pictures, --image")
    asked, each = len(PROMPT.value) + len(LABEL.value), len(image_at())
    if IMAGE.value and (len(IMAGE.value) % each or asked not in (0, len(IMAGE.value) // each)):
        said = f"there are {len(IMAGE.value)} --image and {asked} --prompt or --label"
        raise InputError(f"{said}; give {'one' if each == 1 else each} each")
    if VIDEO.value and asked not in (0, len(VIDEO.value)):
        raise InputError(f"there are {len(VIDEO.value)} --video and {asked} --prompt or --label; give one each")


def sources() -> list[str]:
    """The files that videos begin with or make larger, one for each video; none of videos of a prompt alone."""
    return VIDEO.value or IMAGE.value[:: len(image_at())]


def told_of_motion() -> list[Any]:
    """The flags given that say how a picture moves."""
    return [flag for flag in (MOTION_BUCKET, IMAGE_NOISE) if flag.value is not None]


def check_pictures(generator: "AnyGenerator") -> None:
    """Raises InputError for flags of pictures that the model does not read."""
    from vidjax.generation.cascade import Cascade
    from vidjax.models.picture import PictureEmbedder

    names = set(generator.embedder_names)
    if VIDEO.value and (isinstance(generator, Cascade) or generator.refinement is None):
        raise InputError("--video: this model makes no finished video larger, as I2VGen-XL's second stage does")
    if IMAGE.value and isinstance(generator, Cascade):
        raise InputError("--image: this run's videos are made larger stage by stage, from no picture; leave it out")
    if (told := told_of_motion()) and not isinstance(generator.model.embedders.get("picture"), PictureEmbedder):
        raise InputError(
            f"--{told[0].name} is told to Stable Video Diffusion alone, this is another model; leave it out"
        )
    for flag in (KNOWN, LEVELS, BETWEEN, SUBJECT):
        if flag.value and {"picture", "control"} & names:
            raise InputError(
                f"--{flag.name} is of models that take no picture, this one knows {', '.join(names)}; leave it out"
            )


def image_at() -> list[int]:
    """Reads --image_at. Raises InputError unless it is whole numbers."""
    try:
        return [int(number) for number in IMAGE_AT.value or [0]]
    except ValueError:
        raise InputError(f"--image_at={','.join(IMAGE_AT.value)} are no numbers of frames, such as 0,15") from None


def given_options() -> dict[str, Any]:
    """The fields of SampleConfig that flags set."""
    options = {
        "sampler": SAMPLER.value,
        "num_steps": NUM_STEPS.value,
        "guidance_scale": GUIDANCE_SCALE.value,
        "negative_prompt": NEGATIVE_PROMPT.value,
        "eta": ETA.value,
        "rescale": RESCALE.value,
        "spacing": "karras" if KARRAS.value else SPACING.value,
        "first_guidance": FIRST_GUIDANCE.value,
        "motion_bucket": MOTION_BUCKET.value,
        "picture_noise": IMAGE_NOISE.value,
        "control_scale": CONTROL_SCALE.value,
        "fps": FPS.value,
        "decode_frames": DECODE_FRAMES.value,
    }
    return {name: value for name, value in options.items() if value is not None}


def given_arrays(generator: "AnyGenerator", size: tuple[int, int]) -> dict[str, Any]:
    """What `Generator.latents` takes beside options: subjects, and the noise to start from. Raises InputError."""
    from vidjax.generation.subjects import read_subject

    arrays: dict[str, Any] = {"subjects": [read_subject(generator, text, FRAMES.value, size) for text in SUBJECT.value]}
    if INIT_NOISE.value:
        arrays["noise"] = read_noise(Path(INIT_NOISE.value))
    return arrays


def sample_latents(
    generator: "AnyGenerator",
    prompts: list[str | int],
    size: tuple[int, int],
    options: dict[str, Any],
    arrays: dict[str, Any],
) -> "Array":
    """Samples the latents of all prompts, with a line of progress on the terminal."""
    from vidjax.generation.cascade import Cascade
    from vidjax.runtime import progress

    whole = generator if isinstance(generator, Cascade) else Cascade([generator])
    with progress.show_progress("compiling, then sampling", "step", whole.num_steps(**options)) as report:
        if MOTION.value:
            frames, how = FRAMES.value or generator.size[0], dict(size=size, seed=SEED.value, **options)
            latents = whole.last.in_motion(prompts, read_motion(), frames=frames, **how)
        else:
            more = dict(frames=FRAMES.value, size=size, seed=SEED.value, progress=report)
            latents = whole.latents(prompts, **more, **arrays, **options)
        return latents.block_until_ready()


def write_stages(
    cascade: "Cascade",
    prompts: list[str | int],
    size: tuple[int, int],
    options: dict[str, Any],
    arrays: dict[str, Any],
    out: AnyPath,
) -> "np.ndarray":
    """Samples and writes what all generators but the last make; returns the videos that the last one makes larger.
    Raises InputError, before it samples any, for steps that the last one cannot take."""
    from vidjax.generation.cascade import BASE, Cascade

    cascade.num_steps(**options)
    first = {name: arrays[name] for name in BASE if name in arrays}
    below = Cascade(cascade.generators[:-1])
    frames, hw = cascade.sizes(FRAMES.value, size)[-2]
    found = None
    made = below.videos(prompts, frames=frames, size=hw, seed=SEED.value, **first, **options)
    for generator, found in zip(below.generators, made, strict=True):
        folder = out / "x".join(map(str, found.shape[1:4]))
        write_videos(cascade, prompts, found, options.get("fps", generator.defaults.fps), options, folder)
    assert found is not None
    return found


def write_videos(
    generator: "AnyGenerator",
    prompts: list[str | int],
    videos: "np.ndarray",
    fps: float,
    options: dict[str, Any],
    out: AnyPath,
) -> None:
    """Writes a video per prompt, marked unless told otherwise, and prints their names."""
    import numpy as np

    from vidjax.generation import output, watermark

    names = [p if isinstance(p, str) else f"class {p}" for p in prompts]
    if sources():
        names = [name or Path(file).stem for name, file in zip(names, sources())]
    marked = np.stack([watermark.embed(video) for video in videos]) if WATERMARK.value else videos
    how = dict(seeds=[SEED.value], about=about_of(generator, options), kind=FORMAT.value)
    for entry in output.write_samples(out, names, list(marked[:, None]), fps, **how):
        for name in entry.get("videos", [entry["png"]]):
            print(printable(str(out.parent / name)))


def save_latents(latents: "Array", file: AnyPath) -> None:
    """Writes latents as npy, whole, and prints the name."""
    import numpy as np

    with whole_file(file) as path, path.open("wb") as opened:
        np.save(opened, np.asarray(latents))
    print(SAVE_LATENTS.value)


def is_long(generator: "AnyGenerator") -> bool:
    """Whether the video is sampled clip by clip. Raises InputError for what such videos cannot have."""
    asked = KNOWN.value or LEVELS.value or BETWEEN.value
    if not asked and not (generator.model.masked and (FRAMES.value or 0) > generator.size[0]):
        return False
    if FRAMES.value is None:
        raise InputError("--known, --levels and --between are of long videos: say how long, --frames=1000")
    if FORMAT.value != "mp4":
        raise InputError(f"--format={FORMAT.value} is for videos made at once; leave it out, or make --frames fewer")
    for flag in (MOTION, SUBJECT, INIT_NOISE, SAVE_LATENTS, DECODE_FRAMES, IMAGE, REFINE):
        if flag.value:
            raise InputError(f"--{flag.name} is for videos made at once; leave it out, or make --frames fewer")
    if BETWEEN.value and not LEVELS.value:
        raise InputError("--between fills what lies between keys; say how often, --levels=1")
    return True


def write_long(
    generator: "AnyGenerator", prompts: list[str | int], size: tuple[int, int], options: dict, out: Path
) -> None:
    """Samples and writes long videos, one after the other; the n-th has the seed --seed + n."""
    import json

    from vidjax.data.video_writing import slug
    from vidjax.generation import long_video
    from vidjax.generation.output import describe
    from vidjax.generation.watermark import embed
    from vidjax.recipes.run import Run
    from vidjax.runtime import progress

    between = Run(parse_path(BETWEEN.value, "--between")).generator() if BETWEEN.value else None
    if KNOWN.value:
        options = {**options, "known": KNOWN.value}
    models = [(each.fingerprint(), repr(each.defaults)) for each in (generator, between) if each]
    mark = embed if WATERMARK.value else lambda video: video
    for i, prompt in enumerate(prompts):
        plan = long_video.make_plan(generator, prompt, between, LEVELS.value, size, **options)
        seed = SEED.value + i
        stem = out / f"{i:02d}-{slug(str(prompt))}-seed{seed}"
        how = [str(prompt), seed, size, LEVELS.value, options, WATERMARK.value, models]
        with progress.show_progress(f"sampling video {i + 1} of {len(prompts)}", "frame", FRAMES.value) as report:
            fps, identity = options.get("fps", generator.defaults.fps), json.dumps(how)
            path = long_video.write(generator, plan, stem, FRAMES.value, seed, identity, fps, mark, report)
        about = {**about_of(generator, options), "levels": LEVELS.value, "between": BETWEEN.value}
        describe(path, str(prompt), seed, (FRAMES.value, *size), fps, about)
        print(printable(str(path)))


def about_of(generator: "AnyGenerator", options: dict) -> dict[str, Any]:
    """The settings to note beside a video, without prompt and seed."""
    import dataclasses

    how = dataclasses.asdict(dataclasses.replace(generator.defaults, **options))
    flags = {"model": WORKDIR.value or PRETRAINED.value, "lora": LORA.value, "subject": SUBJECT.value}
    flags |= {"motion_adapter": MOTION_ADAPTER.value} if MOTION_ADAPTER.value else {}
    flags |= {"control": CONTROL.value} if CONTROL.value else {}
    flags |= {"refine": REFINE.value} if REFINE.value else {}
    flags |= {"video": VIDEO.value} if VIDEO.value else {}
    flags |= {"image": IMAGE.value, "image_at": image_at()} if IMAGE.value else {}
    return {**flags, "motion": MOTION.value, "init_noise": INIT_NOISE.value, "watermark": WATERMARK.value, **how}


def make_generator() -> "AnyGenerator":
    """Loads the run's model or the folder's. Raises InputError."""
    if WORKDIR.value:
        from vidjax.recipes.run import Run

        return Run(parse_path(WORKDIR.value)).generator()
    from vidjax.generation.pretrained import load_generator

    given = dict(inflate=INFLATE.value, norm_over=NORM_OVER.value, dtype=DTYPE.value)
    given |= dict(motion_adapter=MOTION_ADAPTER.value, control=CONTROL.value, twice=PICTURE_TWICE.value)
    return load_generator(Path(PRETRAINED.value), **given)


def refined(generator: "AnyGenerator", size: tuple[int, int]) -> tuple["Cascade", tuple[int, int]]:
    """Adds --refine to the model of videos of this size; also returns the size that it makes them, upright if they are.
    Raises InputError."""
    from vidjax.generation.cascade import Cascade
    from vidjax.generation.pretrained import load_generator

    below = generator.generators if isinstance(generator, Cascade) else (generator,)
    second = load_generator(Path(REFINE.value), generator.size[0], dtype=DTYPE.value)
    if second.refinement is None:
        raise InputError(f"--refine={REFINE.value} makes no finished video larger, as I2VGen-XL's second stage does")
    if below[-1].channels != second.channels:
        raise InputError(f"--refine is of videos in color, this model's have {below[-1].channels} channels")
    below[-1].size = (generator.size[0], *size)
    high, wide = second.size[1:] if size[0] <= size[1] else second.size[:0:-1]
    try:
        high, wide = map(int, REFINE_SIZE.value or (high, wide))
    except ValueError:
        said = ",".join(REFINE_SIZE.value)
        raise InputError(f"--refine_size={said} is not two numbers: height and width, such as 720,1280") from None
    check_range("--", 1, refine_size=(high, wide))
    return Cascade([*below, second]), (high, wide)


def read_motion() -> tuple[float, float]:
    """Reads --motion. Raises InputError unless it is two numbers."""
    try:
        down, right = map(float, MOTION.value)
    except ValueError:
        raise InputError(
            f"--motion={','.join(MOTION.value)} is not two numbers: pixels down and right a frame, such as 0,12"
        ) from None
    return down, right


def read_noise(path: Path) -> "np.ndarray":
    """Maps the noise in a file. Raises InputError if it has no array of floats."""
    import numpy as np

    try:
        noise = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: the header may promise any size
    except Exception as error:  # numpy raises many kinds, by what in the header is wrong
        raise InputError(f"--init_noise={path} cannot be read: {error}") from None
    if not isinstance(noise, np.ndarray) or noise.dtype.kind != "f":
        raise InputError(f"--init_noise={path} is no npy file of floats")
    return noise


if __name__ == "__main__":
    cli.start(main)
