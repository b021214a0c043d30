"""Captions and tables of clips are read in every encoding that names itself; what is wrong in one is named."""

import json
import os

import pytest

from vidjax.data.readers import SOURCES
from vidjax.data.video_reading import BrokenClip
from vidjax.errors import InputError
from vidjax.runtime.limits import MAX_TEXT

HEAD = b"videoid,page_dir,name\n"
BAD_TABLES = {
    b"": "has no column videoid",
    HEAD + b"\xff,\xfe,\xfd\n": "line 2 is not UTF-8",
    HEAD + b"1,a,b\n2,a,caf\xe9\n": "line 3 is not UTF-8",
    (HEAD + b"1,a,b\n").decode().encode("utf-16")[:-1]: "line 2 is not UTF-16",
    HEAD + b'1,a,"b\n2,a,c\n3,a,"d, e"\n': "lines 2 to 4: ',' expected after '\"'",
    HEAD + b'1,a,b\n2,a,"c\n3,a,d\n': "lines 3 to 4: unexpected end of data",
    HEAD + b"1,a,b\n2,a,c, d\n": "line 3: 4 columns, the first line has 3",
    HEAD + b"1,a\n": "line 2: 2 columns, the first line has 3",
    b"videoid,page_dir,name,name\n1,a,b,c\n": "has 2 columns name",
    HEAD + b"a,b," + b"c" * 200_000: "field larger than field limit",
}


@pytest.mark.parametrize("table", BAD_TABLES, ids=len)
def test_a_table_that_is_none_is_named(tmp_path, table):
    (tmp_path / "a.csv").write_bytes(table)
    with pytest.raises(InputError, match=BAD_TABLES[table]):
        SOURCES["webvid"](str(tmp_path / "a.csv"))


def test_a_pipe_is_no_table_and_no_caption(tmp_path, mp4):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(InputError, match="not a file"):
        SOURCES["webvid"](str(tmp_path / "a.csv"))
    (tmp_path / "me.mp4").write_bytes(mp4.read_bytes())
    os.mkfifo(tmp_path / "me.txt")
    assert SOURCES["clip"](str(tmp_path / "me.mp4"))[0].text == ""


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_table_of_a_spreadsheet_is_read(tmp_path, encoding):
    text = 'videoid,page_dir,name\r\n1,x,"a ""café"", 東京"\r\n\r\n2,,\r\n'
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    source = SOURCES["webvid"](str(tmp_path / "a.csv"))
    assert [(source[i].name, source[i].text) for i in range(len(source))] == [
        (f"{tmp_path}/x/1.mp4", 'a "café", 東京'),
        (f"{tmp_path}/2.mp4", ""),
    ]


def test_a_caption_of_several_lines_is_warned_of_once(tmp_path, caplog):
    """A quote that is left open may end at another: the rows between are then a caption."""
    (tmp_path / "a.csv").write_bytes(HEAD + b'1,a,"b\n2,a,c\n3,a,d"\n4,a,"e\nf"\n')
    assert len(SOURCES["webvid"](str(tmp_path / "a.csv"))) == 2
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "a row from line 2 to line 4: is a quote left open?" in warning


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_captions_are_read_in_every_encoding_that_names_itself(tmp_path, mp4, encoding):
    (tmp_path / "a.mp4").write_bytes(mp4.read_bytes())
    (tmp_path / "b.mp4").write_bytes(mp4.read_bytes())
    (tmp_path / "a.txt").write_bytes("un café\r\n".encode(encoding))
    (tmp_path / "captions.json").write_bytes(json.dumps({"b.mp4": "東京"}, ensure_ascii=False).encode(encoding))
    source = SOURCES["folder"](str(tmp_path))
    assert [source[i].text for i in range(2)] == ["un café", "東京"]


@pytest.mark.parametrize(
    "content", ["a\ncafé".encode("latin-1"), "a\nb".encode("utf-16-le"), "a\nb".encode("utf-16-be")]
)
def test_captions_in_another_encoding_are_refused_with_their_line(tmp_path, mp4, content):
    (tmp_path / "a.mp4").write_bytes(mp4.read_bytes())
    for name in ("a.txt", "captions.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}, line [12] is not UTF-8"):
            SOURCES["folder"](str(tmp_path))
        (tmp_path / name).unlink()


def test_names_that_no_disk_has_are_broken_clips(tmp_path):
    rows = b"".join(b"%s,x,text\n" % name for name in (b"a\0b", b"c" * 1000, b"../" * 50 + b"dev/zero", b"", b"pipe:"))
    (tmp_path / "a.csv").write_bytes(HEAD + rows)
    source = SOURCES["webvid"](str(tmp_path / "a.csv"))
    for i in range(len(source)):
        with pytest.raises(BrokenClip, match="no such file"):
            source[i].open()


def test_a_caption_is_cut_and_one_that_is_no_text_is_refused(tmp_path, mp4):
    (tmp_path / "me.mp4").write_bytes(mp4.read_bytes())
    (tmp_path / "me.txt").write_text("a" * (MAX_TEXT + 9))
    assert len(SOURCES["clip"](str(tmp_path / "me.mp4"))[0].text) == MAX_TEXT
    for captions in ('{"me.mp4": 3}', "[" * 100_000, "3", '[{"file": [], "caption": ""}]'):
        (tmp_path / "captions.json").write_text(captions)
        with pytest.raises(InputError, match="is not a captions file"):
            SOURCES["folder"](str(tmp_path))
