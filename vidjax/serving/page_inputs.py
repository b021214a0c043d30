"""Bounds what fields of the page read before the page sees it: Gradio reads whatever it is sent, with all that Pillow
can."""

import os
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import ListFiles
from jaxtyping import Bool

from vidjax.data.pictures import read_picture
from vidjax.data.video_reading import BrokenClip

MAX_LAYERS = 4  # of a drawing


def bound_files(field: gr.File, count: int, size: int) -> None:
    """Lets a field take up to `count` files of up to `size` bytes together, where others raise gr.Error."""
    read = field.preprocess

    def preprocess(payload: Any) -> Any:
        files = payload.root if isinstance(payload, ListFiles) else [payload] if payload else []
        if len(files) > count:
            raise gr.Error(f"{count} files are the most")
        if sum(os.path.getsize(each.path) for each in files) > size:
            raise gr.Error(f"{size} bytes are the most, of all files together")
        return read(payload)

    field.preprocess = preprocess


def bound_drawing(editor: gr.ImageEditor) -> None:
    """Lets the value of an editor be its layers alone, each as the bool [h, w] where it is painted; more than a few, or
    what is no picture, raise gr.Error. It takes no drawings on the way, which it would keep for ever."""

    def preprocess(payload: Any) -> dict[str, Any] | None:
        if payload is None:
            return None
        if len(payload.layers) > MAX_LAYERS:
            raise gr.Error(f"{MAX_LAYERS} layers are the most")
        return {"layers": [read_layer(Path(each.path)) for each in payload.layers]}

    editor.preprocess, editor.accept_blobs = preprocess, None


def read_layer(file: Path) -> Bool[np.ndarray, "h w"]:
    """Reads where a layer is painted. Raises gr.Error."""
    try:
        return read_picture(file, "RGBA")[..., 3] > 0
    except BrokenClip as error:
        raise gr.Error(f"what was painted can't be read: {error}") from None
