"""A folder whose files are not those that were written is told apart."""

import json

import pytest

from vidjax.runtime.checksums import LIST_FILE, TIMES_FILE, find_damage, write


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "a").write_bytes(b"abc" * 1000)
    (tmp_path / "state" / "b").write_bytes(b"")
    (tmp_path / "note").write_text("what is beside the items may change")
    write(tmp_path)
    return tmp_path


def test_what_was_written_is_whole_also_without_a_list(folder):
    assert find_damage(folder, contents=True) is None
    (folder / "note").unlink()
    assert find_damage(folder, contents=True) is None
    (folder / LIST_FILE).unlink()
    (folder / "state" / "a").unlink()
    assert find_damage(folder) is None  # of an older version: nothing is known


def test_an_empty_folder_is_not_whole(tmp_path):
    assert find_damage(tmp_path) == "it is empty"


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda file: file.unlink(), "state/a is missing"),
        (lambda file: file.write_bytes(b"abc"), "state/a has 3 of 3000 bytes"),
        (lambda file: file.write_bytes(b"abd" * 1000), "state/a holds other bytes"),
        (lambda file: (file.parent.parent / LIST_FILE).write_text('{"state/a": [3'), f"{LIST_FILE} is cut off"),
        *(
            (
                lambda file, text=text: (file.parent.parent / LIST_FILE).write_text(text),
                f"{LIST_FILE} is cut off or damaged",
            )
            for text in ("", "[]", "3", '{"a": 1}', '{"a": [1]}', "[" * 100_000, '{"a": null}')
        ),
    ],
)
def test_damage_is_named(folder, change, says):
    change(folder / "state" / "a")
    assert says in find_damage(folder, contents=True)


@pytest.mark.parametrize("text", ["", "3", "[]", '{"commit_timestamp_nsecs": 1e30}', '{"init_timestamp_nsecs": "a"}'])
def test_a_note_that_orbax_cannot_read_is_damage(text, folder):
    (folder / TIMES_FILE).write_text(
        '{"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": null, "custom_metadata": {}}'
    )
    assert find_damage(folder) is None
    (folder / TIMES_FILE).write_text(text)
    assert find_damage(folder) == f"{TIMES_FILE} is damaged"


def test_contents_are_read_only_when_asked(folder):
    (folder / "state" / "a").write_bytes(b"abd" * 1000)
    assert find_damage(folder) is None
    assert json.loads((folder / LIST_FILE).read_text()).keys() == {"state/a", "state/b"}
