"""The one exception that is meant for the person at the keyboard."""


class InputError(ValueError):
    """What is wrong, with which value, and what to do: one line. Programs print it alone and exit with 1."""
