"""How a model makes a finished video larger: the video, enlarged, goes back to noise and is sampled from there."""

import dataclasses

import numpy as np
from jaxtyping import Float

from vidjax.diffusion.schedule import Schedule
from vidjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Refinement:
    """That of I2VGen-XL's second stage (Zhang et al. 2023): DDIM backwards under `schedule`, a table, from its first
    entry, at which latents are taken to be, to entry `level`; what it ends at stands for the noise that sampling,
    under a schedule of its own, begins with at time `level`.
    """

    schedule: Schedule
    level: int

    def inversion_times(self, num_steps: int) -> Float[np.ndarray, " n"]:
        """Growing times of the way back, for sampling in `num_steps`: steps of equal whole numbers, but for the last,
        rounded down, so that they are as many or more. Raises InputError."""
        if not 1 <= num_steps <= self.level + 1:
            raise InputError(f"num_steps is {num_steps}; it must lie in 1..{self.level + 1}")
        entries = self.level + 1
        return np.append(np.arange(0, entries, entries // num_steps), self.level).astype(np.float32)

    def times(self, num_steps: int, clean: float) -> Float[np.ndarray, " n"]:
        """`num_steps + 1` falling times from `level` to `clean`: even ones, laid out for one step more, whose last is
        left out. Those that are no whole numbers lie between entries."""
        even = self.level - np.arange(num_steps) * (self.level + 1) / (num_steps + 1)
        return np.append(even, clean).astype(np.float32)
