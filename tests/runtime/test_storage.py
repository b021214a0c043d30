"""A file or a folder appears whole or not at all, and nothing that was there before is touched."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vidjax.errors import InputError
from vidjax.runtime.storage import whole_folder, write_json


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() if p.is_file() else None for p in folder.rglob("*")}


def test_a_folder_appears_whole_beside_others_that_are_called_alike(tmp_path):
    (tmp_path / "foo.part").mkdir()
    (tmp_path / "foo.part" / "thesis").write_text("three years of it")
    (tmp_path / "foo").mkdir()  # empty: it gives way
    with whole_folder(tmp_path / "foo") as one, whole_folder(tmp_path / "new" / "foo") as two:
        assert one.parent == tmp_path and not list((tmp_path / "foo").iterdir()) and not (tmp_path / "new/foo").exists()
        (one / "a").write_text("1")
        (two / "b").write_text("2")
    assert tree(tmp_path) == {
        "foo.part": None,
        "foo.part/thesis": "three years of it",
        "foo": None,
        "foo/a": "1",
        "new": None,
        "new/foo": None,
        "new/foo/b": "2",
    }
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "foo").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_at_once_do_not_meet(tmp_path):
    with pytest.raises(InputError, match="can't be made"), whole_folder(tmp_path / "foo") as slow:
        (slow / "a").write_text("slow")
        with whole_folder(tmp_path / "foo") as fast:
            (fast / "a").write_text("fast")
    assert tree(tmp_path) == {"foo": None, "foo/a": "fast"}


def test_what_fails_leaves_nothing(tmp_path):
    (tmp_path / "foo.part").write_text("a file")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), whole_folder(tmp_path / "foo") as part:
            (part / "a").write_text("1")
            raise error
    assert tree(tmp_path) == {"foo.part": "a file"}


def test_what_cannot_be_a_new_folder_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("1")
    (tmp_path / "link").symlink_to("nowhere")
    before, worked = tree(tmp_path), []
    monkeypatch.chdir(tmp_path / "full")
    for name in ("file", "full", "link", "file/under", "x" * 300, "a\0b", "/proc/x", "/", "", ".", ".."):
        with pytest.raises(InputError, match=r"--save=.*(is not empty|can't be written)") as caught:
            path = tmp_path / name if name.strip("./") else Path(name)
            with whole_folder(path, "--save"):
                worked.append(name)
        assert "\n" not in str(caught.value)
    assert not worked and tree(tmp_path) == before and os.path.islink(tmp_path / "link")


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    write_json(path, {"a": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_json_may_be_written_by_several_at_once(tmp_path):
    path = tmp_path / "config.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: write_json(path, {"n": n}), range(200)))  # an error in one would be raised here
    assert json.loads(path.read_text())["n"] in range(200)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
