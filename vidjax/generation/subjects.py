"""Several subjects in one video, each with a prompt, a place and adapters (as in VideoMage)."""

from vidjax.errors import InputError
from vidjax.generation import editing
from vidjax.generation.adapters import merge_lora_files
from vidjax.generation.cascade import AnyGenerator
from vidjax.generation.options import Subject


def read_subject(
    generator: AnyGenerator, text: str, frames: int | None = None, size: tuple[int, int] | None = None
) -> Subject:
    """Reads a subject, "PROMPT|MASK.png|LORA.safetensors[:WEIGHT]", the last part optional; it acts where white is.

    The picture has the video's size. Raises InputError for a part that is missing, cannot be read or does not fit.
    """
    parts = [part.strip() for part in text.split("|")]
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(f"subject {text!r} is not written PROMPT|MASK.png or PROMPT|MASK.png|LORA.safetensors:WEIGHT")
    prompt, picture, *files = parts
    _, h, w, _ = generator.latent_shape(frames, size)
    mask = editing.latent_mask(picture, "", (1, *(size or generator.size[1:])), (1, h, w))
    if not mask.any():
        raise InputError(f"the mask {picture} has no white pixel: the subject {prompt!r} would be nowhere")
    return Subject(prompt, mask, merge_lora_files(generator, files) if files else None)
