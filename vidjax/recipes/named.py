"""Finds the recipes that come with vidjax by name: `lvdm` is configs/lvdm.py, of a clone or the installed package."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def recipe_files() -> dict[str, Path]:
    """Returns the files of the recipes that come with vidjax, by name, in order. An installed package has them in
    itself, a clone beside it."""
    within, beside = PACKAGE / "configs", PACKAGE.parent / "configs"
    return {file.stem: file for file in sorted((within if within.is_dir() else beside).glob("*.py"))}


def as_file(recipe: str) -> str:
    """Returns NAME or NAME:VARIANT with the file of that recipe in the name's place; what names no recipe of vidjax,
    such as a file of one's own, stays as it is."""
    name, colon, variant = recipe.partition(":")
    return f"{recipe_files().get(name, name)}{colon}{variant}"
