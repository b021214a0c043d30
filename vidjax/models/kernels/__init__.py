"""The products, convolutions and attention that layers are made of, each in the form that its platform runs fastest.

The platform is that of the program (`runtime.platforms`), the form is chosen by context managers: `textbook` and
`forward_mode`. JAX compiles a function anew for another mesh or another of these choices.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which forms of an operation a program may take. `textbook`: every operation in its plain form. `by_hand`:
    gradients may be written by hand, and then have no forward mode (`jax.jvp`)."""

    textbook: bool = False
    by_hand: bool = True


_choice = jax.make_user_context(Choice())


def choice() -> Choice:
    """Returns what the innermost context manager around the function that is being traced has chosen."""
    return _choice.value


@contextlib.contextmanager
def textbook() -> Iterator[None]:
    """Has functions traced inside take the plain form of attention, convolutions and products."""
    with _choice(Choice(textbook=True, by_hand=False)):
        yield


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Has functions traced inside keep forward-mode derivatives (`jax.jvp`) on every platform: no flash attention,
    whose kernels have none, and on CPUs no gradients written by hand."""
    with _choice(dataclasses.replace(choice(), by_hand=False)):
        yield
