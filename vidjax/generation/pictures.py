"""Pictures that are frames of videos, and finished clips: read from files, brought to the size of the video, put in
their places."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from vidjax.data.crops import cover_size, crop_at
from vidjax.data.pictures import read_picture
from vidjax.data.video_reading import BrokenClip, Video, resize
from vidjax.errors import InputError


def read_pictures(files: Sequence[str | Path]) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Reads pictures turned as EXIF says, on white where they are transparent. Raises InputError for one that cannot be
    read."""
    return [_read(file) for file in files]


def _read(file: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    if not Path(file).is_file():
        raise InputError(f"--image={file} does not exist; name a picture")
    try:
        rgba = read_picture(file, "RGBA").astype(np.uint32)
    except BrokenClip as error:
        raise InputError(f"--image={file}: {error}; name a PNG, JPEG, WebP, BMP or PPM") from None
    color, alpha = rgba[..., :3], rgba[..., 3:]
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def read_clips(
    files: Sequence[str | Path], frames: int | None = None
) -> tuple[list[UInt8[np.ndarray, "t h w 3"]], float]:
    """Reads the first `frames` of clips, by default all of the first one's; also returns the frames per second of that
    one. Raises InputError for a clip that cannot be read or is shorter."""
    clips, rates = [], []
    for file in files:
        try:
            with Video(file) as video:
                frames = frames or video.frames
                if video.frames < frames:
                    raise InputError(
                        f"--video={file} has {video.frames} frames, not {frames}; give --frames={video.frames}"
                    )
                clips.append(video.read(range(frames)))
                rates.append(video.fps)
        except BrokenClip as error:
            raise InputError(f"--video={file}: {error}; name another clip, or fewer --frames") from None
    return clips, rates[0]


def default_size(
    picture: UInt8[np.ndarray, "h w 3"], trained: tuple[int, int], height: int | None, width: int | None
) -> tuple[int, int]:
    """Chooses (height, width) of a video of this picture: what is given, else as trained, turned if the picture is."""
    high, wide = trained
    if height is None and width is None and (picture.shape[0] > picture.shape[1]) != (high > wide):
        return wide, high
    return height or high, width or wide


def fit_pictures(pictures: Sequence[np.ndarray], size: tuple[int, int]) -> UInt8[np.ndarray, "b h w 3"]:
    """Scales pictures to cover `size` (height, width), bicubic with antialiasing, and crops them around the middle."""
    scaled = (resize(each[None], cover_size(*each.shape[:2], size)) for each in pictures)
    return np.concatenate([crop_at(each, size, (0.5, 0.5)) for each in scaled])


def resize_linear(video: UInt8[np.ndarray, "b t h w c"], size: tuple[int, int]) -> Float[np.ndarray, "b t i j c"]:
    """Scales frames to (height, width), linearly between the nearest pixels, without rounding."""
    shape = (*video.shape[1:2], *size, video.shape[-1])
    scale = lambda clip: jax.image.resize(
        jnp.asarray(clip, jnp.float32), shape, "linear", antialias=False, precision=jax.lax.Precision.HIGHEST
    )
    return np.stack([np.asarray(scale(clip)) for clip in video])


def read_places(places: Sequence[int], frames: int) -> list[int]:
    """The frames that pictures are given for, those below 0 counted from the end. Raises InputError for one that the
    video has not, or that is there twice."""
    found = [place + frames if place < 0 else place for place in places]
    if not found or len(set(found)) < len(found) or not all(0 <= place < frames for place in found):
        raise InputError(
            f"--image_at={','.join(map(str, places))} are no different frames of {frames}, which are 0 to {frames - 1}"
        )
    return found


def put_in_place(
    seen: Float[np.ndarray, "b k h w c"], places: Sequence[int] | np.ndarray, frames: int
) -> tuple[Float[np.ndarray, "b t h w c"], Bool[np.ndarray, " t"]]:
    """Returns videos, or latents of them, that are zero but for frames in these places, and a mask of these."""
    video = np.zeros((len(seen), frames, *seen.shape[2:]), np.float32)
    video[:, places] = seen
    return video, np.isin(np.arange(frames), places)


def sort_by_video(
    pictures: UInt8[np.ndarray, "n h w c"], count: int, places: Sequence[int], size: tuple[int, ...]
) -> UInt8[np.ndarray, "b k h w c"]:
    """Gives each of `count` videos its pictures, one video's after the other's. Raises InputError for too many, too
    few, or some of another size than `size` (h, w, c)."""
    wanted = (count * len(places), *size)
    if pictures.shape != wanted:
        raise InputError(f"the pictures are {pictures.shape}, these videos want {wanted}, {len(places)} in each")
    return pictures.reshape(count, len(places), *size)


def known_pictures(
    pictures: UInt8[np.ndarray, "n h w c"],
    places: Sequence[int],
    count: int,
    video: tuple[int, ...],
    encode: Callable[[np.ndarray], np.ndarray],
    stride: int,
) -> tuple[Float[np.ndarray, "b s i j z"], Bool[np.ndarray, " s"]]:
    """Makes latents that are known and a mask of them, of pictures that are the frames `places` of `count` videos of
    size `video` (t, h, w, c). In latents of several frames, `stride`, a picture stands still. Raises InputError."""
    frames = read_places(places, video[0])
    at = [frame // stride for frame in frames]
    if len(set(at)) < len(at):
        said = ",".join(map(str, places))
        raise InputError(
            f"--image_at={said}: this model joins {stride} frames, name one in each of 0:{stride}, and so on"
        )
    still = sort_by_video(pictures, count, frames, video[1:]).reshape(-1, 1, *video[1:])
    seen = encode(np.repeat(still, stride, 1))
    return put_in_place(seen.reshape(count, len(at), *seen.shape[2:]), at, video[0] // stride)


def hints(
    pictures: UInt8[np.ndarray, "n h w c"],
    places: Sequence[int],
    count: int,
    video: tuple[int, ...],
    encode: Callable[[np.ndarray], np.ndarray] | None,
    sparse: bool,
) -> Float[np.ndarray, "b t i j z"]:
    """Makes what a ControlNet is shown: latents, or pixels in [0, 1] without `encode`, of pictures that are the frames
    `places` of `count` videos of size `video` (t, h, w, c), elsewhere zeros; with `sparse` the mask of these frames
    beside them. A single picture is that of all frames, where it is not sparse. Raises InputError."""
    frames = read_places(places, video[0])
    own = sort_by_video(pictures, count, frames, video[1:])
    seen = encode(own.reshape(-1, 1, *video[1:])) if encode else own.astype(np.float32) / 255
    seen = seen.reshape(count, len(frames), *seen.shape[-3:])
    if not sparse and len(frames) == 1:
        return np.repeat(seen, video[0], 1)
    hint, mask = put_in_place(seen, frames, video[0])
    if not sparse:
        return hint
    return np.concatenate([hint, np.broadcast_to(mask[:, None, None, None], (*hint.shape[:-1], 1))], -1)
