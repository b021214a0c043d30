"""Reads WebVid's table of clips and captions, of ten rows or of ten million."""

import csv
import io
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vidjax.data.source import Item, Source, check_exists, open_clip
from vidjax.data.strings import Strings
from vidjax.errors import InputError
from vidjax.runtime.inputs import encoding_of, open_regular

logger = logging.getLogger(__name__)
SHIPPED = Path(__file__).parent.parent / "clips" / "clips.csv"
COLUMNS = ("videoid", "page_dir", "name")
MAX_LINE_CHARACTERS = 2**20  # what follows them counts as another line


def webvid(path: str = "", split: str = "train") -> Source:
    """Reads WebVid's layout: a CSV with columns videoid, page_dir, name (the caption), the files at
    page_dir/videoid.mp4.

    The files lie beside the CSV, or under `videos/` beside it. `path` is the CSV, or a folder with one CSV (or one
    whose name has `split`) in it; "" is the clips that ship with the package. Missing files show when they are read. A
    page_dir may lead out of the folder: what is there is read as a video, or not at all. Raises InputError.
    """
    table = check_exists(path, "a WebVid CSV or its folder") if path else SHIPPED
    if table.is_dir():
        tables = sorted(table.glob("*.csv"))
        tables = [t for t in tables if split in t.stem] if len(tables) > 1 else tables
        if len(tables) != 1:
            raise InputError(f"{len(tables)} CSV files to choose from in {table}: set data.path to the one to read")
        table = tables[0]
    root = table.parent / "videos" if (table.parent / "videos").is_dir() else table.parent
    files, texts = Strings(), Strings()
    for key, page, text in _rows(table):
        files.append(f"{page}/{key}.mp4" if page else f"{key}.mp4")
        texts.append(text)

    def item(i: int) -> Item:
        return Item(str(root / files[i]), texts[i], -1, lambda: open_clip(root / files[i]))

    return Source(len(files), item)


def _rows(table: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (videoid, page_dir, name) of each row. Raises InputError, with the line, if it is no table of these
    columns; warns once of a text of several lines, which may be a quote that was left open."""
    with open_regular(table, "set data.path to a WebVid CSV") as file:
        encoding = encoding_of(file.read(4))
        file.seek(0)
        lines = partial(io.TextIOWrapper(file, encoding, newline="").readline, MAX_LINE_CHARACTERS)
        reader = csv.reader(iter(lines, ""), strict=True)
        line, warned = 0, False
        try:
            header = next(reader, [])
            key, page, name = (_place(table, header, column) for column in COLUMNS)
            line = reader.line_num
            for row in reader:
                line, first = reader.line_num, line + 1
                if len(row) != len(header):
                    if not row:
                        continue
                    raise InputError(
                        f"{table}, line {line}: {len(row)} columns, the first line has {len(header)}: put texts with "
                        'commas in quotes, and write a quote in them twice ("")'
                    )
                if line > first and not warned:
                    logger.warning("%s has a row from line %d to line %d: is a quote left open?", table, first, line)
                    warned = True
                yield row[key].strip(), row[page].strip(), row[name].strip()
        except UnicodeDecodeError:
            line = _line_of_no_utf8(table) if encoding == "utf-8-sig" else reader.line_num + 1
            raise InputError(
                f"{table}, line {line} is not {encoding.removesuffix('-sig').upper()}: save the table as UTF-8"
            ) from None
        except csv.Error as error:
            where = f"line {line + 1}" if reader.line_num <= line + 1 else f"lines {line + 1} to {reader.line_num}"
            raise InputError(
                f'{table}, {where}: {error}: is a quote left open? Write those inside a text twice ("")'
            ) from None


def _place(table: Path, header: list[str], column: str) -> int:
    if header.count(column) != 1:
        how = f"no column {column}" if column not in header else f"{header.count(column)} columns {column}"
        raise InputError(f"{table} has {how}: a WebVid CSV has one each of {', '.join(COLUMNS)}")
    return header.index(column)


def _line_of_no_utf8(table: Path) -> int:
    with open_regular(table) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE_CHARACTERS), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0
