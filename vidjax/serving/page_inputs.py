"""Bounds what the page takes from a browser: Gradio keeps and reads whatever it is sent, with all that Pillow can."""

import os
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ListFiles

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
    """Lets the value of an editor be the files of its layers alone; more than a few raise gr.Error. It takes no
    drawings on the way, which it would keep for ever."""

    def preprocess(payload: Any) -> list[Path]:
        layers = payload.layers if payload else []
        if len(layers) > MAX_LAYERS:
            raise gr.Error(f"{MAX_LAYERS} layers are the most")
        return [Path(each.path) for each in layers]

    editor.preprocess, editor.accept_blobs = preprocess, None
