"""Draws docs/schedules.png: a shipped clip's frame under the noise of three schedules, and their log SNR.

python docs/draw_schedules.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import vidjax
from vidjax.data.webvid import SHIPPED

matplotlib.use("agg")
from matplotlib import pyplot

TIMES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.95)  # shares of the way from data to noise
SCHEDULES = {
    "scaled_linear": vidjax.schedules.scaled_linear(),
    "cosine": vidjax.schedules.cosine(steps=None),
    "flow": vidjax.schedules.flow(),
}


def main() -> None:
    """Writes the picture beside this file."""
    frame = jnp.asarray(vidjax.to_unit(vidjax.read_frames(SHIPPED.parent / "real" / "tower.mp4", [0], size=(96, 96))))[
        0
    ]
    noise = jax.random.normal(jax.random.key(0), frame.shape)
    figure = pyplot.figure(figsize=(10, 4), layout="constrained")
    pictures, curves = np.ravel(figure.subfigures(1, 2, width_ratios=(1.9, 1)))
    grid = pictures.subplots(len(SCHEDULES), len(TIMES))
    plot = curves.subplots()
    share = np.linspace(0.001, 0.999, 400)
    for (name, schedule), row in zip(SCHEDULES.items(), grid, strict=True):
        at = lambda u, schedule=schedule: schedule.clean + u * (schedule.noisiest - schedule.clean)
        for axes, u in zip(row, TIMES, strict=True):
            axes.imshow(np.asarray(vidjax.to_uint8(schedule.q_sample(frame, noise, at(u)))))
            axes.set_xticks([])
            axes.set_yticks([])
            if name == "scaled_linear":
                axes.set_title(f"{u:.0%} of the way", fontsize=7)
        row[0].set_ylabel(name, fontsize=8)
        plot.plot(share, np.asarray(schedule.logsnr(at(share))), label=name)
    plot.set_xlabel("share of the way to the noisiest time", fontsize=8)
    plot.set_ylabel("log SNR", fontsize=8)
    plot.tick_params(labelsize=7)
    plot.legend(fontsize=8)
    figure.savefig(Path(__file__).with_name("schedules.png"), dpi=75)


if __name__ == "__main__":
    main()
