"""A small real video in H.264, made once."""

import numpy as np
import pytest

from vidjax.data.shapes import draw
from vidjax.data.video_writing import write_mp4


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    """40 frames of 48x64, all different."""
    return draw("circle", "red", "right", frames=40, size=64)[:, 8:56]


@pytest.fixture(scope="session")
def mp4(tmp_path_factory, frames):
    path = tmp_path_factory.mktemp("video") / "circle.mp4"
    write_mp4(path, frames, 10.0)
    return path


@pytest.fixture(scope="session")
def damage():
    """damage(file, n): flips one bit of an ArrayRecord file so that record n, and no other, cannot be read."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    def unreadable(file) -> list[int]:
        records, found = ArrayRecordDataSource([str(file)]), []
        for i in range(len(records)):
            try:
                records[i]
            except RuntimeError:
                found.append(i)
        return found

    def flip(file, record: int) -> None:
        whole = file.read_bytes()
        for at in range(100, len(whole), 100):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            try:
                if unreadable(file) == [record]:
                    return
            except RuntimeError:
                continue
        raise AssertionError(f"no bit of {file} is record {record}'s alone")

    return flip
