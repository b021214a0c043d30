"""Says whether videos have the invisible mark of generated ones: `python -m vidjax.watermark --video FILE`."""

from absl import flags

from vidjax import cli
from vidjax.errors import InputError

VIDEO = flags.DEFINE_multi_string("video", [], "A video file; give the flag several times for several.")


def main() -> None:
    """Prints for each video whether it is marked. Raises InputError for one that cannot be read."""
    from vidjax.data.source import open_clip
    from vidjax.data.video_reading import BrokenClip
    from vidjax.generation.watermark import FOUND, detect

    if not VIDEO.value:
        raise InputError("--video is missing: name a video file")
    for name in VIDEO.value:
        try:
            with open_clip(name) as video:
                score = detect(video.read(range(video.frames)))
        except BrokenClip as reason:
            raise InputError(f"{name}: {reason}") from None
        print(f"{name}: {'marked' if score >= FOUND else 'not marked'} (score {score:.1f}, marked from {FOUND:g})")


if __name__ == "__main__":
    cli.start(main)
