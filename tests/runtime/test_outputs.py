"""A place that cannot be written is one line before any work, which names the flag; trying leaves nothing behind."""

import os

import pytest

from vidjax.errors import InputError
from vidjax.runtime.outputs import open_file, open_folder, open_new_folder

BAD = {
    "a file": "file/x",
    "long": "x" * 300,
    "long below": "a/" + "x" * 300,
    "zero": "a\0b",
    "proc": "/proc/x/y",
}
BAD_FOLDERS = {**BAD, "file": "file", "dangling": "dangling", "pipe": "pipe"}
BAD_FILES = {**BAD, "dangling": "dangling", "pipe": "pipe", "here": ".", "above": "..", "root": "/", "folder": "folder"}
BAD_NEW = {**BAD_FOLDERS, "here": ".", "root": "/", "full": "folder"}
CASES = [
    (opens, text)
    for opens, cases in ((open_folder, BAD_FOLDERS), (open_file, BAD_FILES), (open_new_folder, BAD_NEW))
    for text in cases.values()
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("opens, text", CASES)
def test_what_cannot_be_written_is_refused(place, opens, text):
    before = tree(place)
    with pytest.raises(InputError) as error:
        opens(text, "--flag")
    assert str(error.value).startswith(f"--flag={text}") and "\n" not in str(error.value)
    assert tree(place) == before


@pytest.mark.parametrize("text", ["a/b/c", ".", "folder", "a b", "☃"])
def test_a_folder_is_where_files_can_be_made(place, text):
    before = tree(place)
    path = open_folder(text)
    assert tree(place) == before
    path.mkdir(parents=True, exist_ok=True)
    (path / "x").touch()
    assert (place / text / "x").exists()
    assert path.name  # so that one can be written beside it


@pytest.mark.parametrize("text", ["a/b.json", "file"])
def test_a_file_may_be_new_or_old(place, text):
    before = tree(place)
    path = open_file(text, "--json")
    assert tree(place) == before and (place / "file").read_text() == "old"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("new")


@pytest.mark.parametrize("text", ["a/b", "empty"])
def test_a_new_folder_may_be_empty(place, text):
    (place / "empty").mkdir()
    before = tree(place)
    assert not open_new_folder(text).exists() or text == "empty"
    assert tree(place) == before


@pytest.mark.parametrize("opens", [open_new_folder, lambda text: open_file(text, "--json", disk=True)])
def test_some_places_must_be_on_a_disk(opens):
    with pytest.raises(InputError, match="no folder of a disk"):
        opens("gs://bucket/x")
