"""What users name is opened at once or refused in one line: no file is waited for, none without an end is read."""

import os
import socket
from pathlib import Path

import pytest
from etils import epath

from vidjax.errors import InputError
from vidjax.runtime.inputs import open_regular, read_bytes, read_json


def refused(read, path, *more):
    with pytest.raises(InputError) as caught:
        read(path, *more)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name, says in (
            ("pipe", "a pipe, a socket or a device"),
            ("link", "a pipe, a socket or a device"),
            ("/dev/zero", "a pipe, a socket or a device"),
            ("", "a folder, not a file"),
            ("socket", "can't be read"),
            ("dangling", "No such file"),
            ("missing", "No such file"),
            ("x" * 300, "File name too long"),
            ("a\0b", "null byte"),
            ("\ud800", "surrogates"),
        ):
            for read in (open_regular, read_bytes, read_json):
                assert says in refused(read, tmp_path / name)


def test_descriptors_are_not_left_open(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "pipe", tmp_path):
        refused(open_regular, path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_read_whole_or_not_at_all(tmp_path):
    (tmp_path / "a").write_bytes(b'{"a": 1}')
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "empty").write_bytes(b"")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    for path in (tmp_path / "a", str(tmp_path / "a"), tmp_path / "link", epath.Path(tmp_path / "a")):
        assert read_bytes(path, 8) == b'{"a": 1}' and read_json(path) == {"a": 1}
        assert "has 8 bytes, 7 are the most: take less" in refused(read_bytes, path, 7, "take less")
    assert read_bytes(tmp_path / "empty", 0) == b""
    assert f"has {2**40} bytes" in refused(read_bytes, tmp_path / "sparse")


def test_what_is_no_json_is_named(tmp_path):
    for content in (b"", b"{", b"\xff", b"[" * 100_000, b"9" * 10_000):
        (tmp_path / "a.json").write_bytes(content)
        assert "is not JSON" in refused(read_json, Path(tmp_path / "a.json"))
