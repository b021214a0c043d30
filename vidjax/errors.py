"""InputError, the one exception that is meant for the user, and the words of other exceptions in one line."""

import sys


def reason(error: BaseException) -> str:
    """Returns the first 200 characters of an error's text, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def printable(text: str) -> str:
    """Replaces line ends and control characters by spaces, so that a terminal shows one line."""
    return "".join(c if c.isprintable() else " " for c in text)


class InputError(ValueError):
    """Says in one line what is wrong, with which value, and what to do. Programs print the line alone and exit with
    1."""


LARGE = 2**31 - 1


def check_range(where: str, least: int | float, most: int | float = LARGE, /, **values: object) -> None:
    """Raises InputError for a number outside [least, most], or a tuple with one in it; None passes."""
    for name, value in values.items():
        numbers = value if isinstance(value, tuple | list) else (value,)
        if not all(least <= n <= most for n in numbers if isinstance(n, int | float)):
            upper = f" and at most {most}" if most not in (LARGE, sys.float_info.max) else ""
            raise InputError(f"{where}{name}={value}: must be at least {least}{upper}")
