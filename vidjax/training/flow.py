"""What a flow autoencoder minimises: one frame of a clip is to become another one, by the motion of regions that move
as the picture does (Siarohin et al. 2021)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidjax.data.transforms import to_unit
from vidjax.diffusion.draws import Draws
from vidjax.models.flow_layers import Pictures
from vidjax.models.region_motion import Regions, geometry, inverse, upright
from vidjax.models.warping import identity_grid, sample_grid, shrink
from vidjax.training.step import Batch, Metrics

SEEN = 16  # pixels of height and width that VGG halves four times

Places = Float[Array, "b p 2"]


@dataclasses.dataclass(frozen=True)
class Bend:
    """Smooth maps of places, one per example: an affine one and a thin plate, which moves both coordinates alike.

    `affine` [A | b], `plate` the weights at points from corner to corner.
    """

    affine: Float[Array, "b 2 3"]
    plate: Float[Array, "b p p"]

    def __call__(self, places: Places) -> Places:
        """Where places go."""
        return jax.vmap(_bend)(self.affine, self.plate, places)

    def jacobian(self, places: Places) -> Float[Array, "b p 2 2"]:
        """Their derivatives at places."""
        at = lambda affine, plate, place: _bend(affine, plate, place[None])[0]
        return jax.vmap(jax.vmap(jax.jacfwd(at, 2), (None, None, 0)))(self.affine, self.plate, places)

    def frames(self, pictures: Pictures, corners: bool = False) -> Pictures:
        """The pictures whose pixels at a place are the given ones' where that place goes."""
        n, h, w, _ = pictures.shape
        places = identity_grid(h, w, corners).reshape(1, -1, 2).repeat(n, 0)
        return sample_grid(pictures, self(places).reshape(n, h, w, 2), reflect=True)


@geometry()
def _bend(affine: Array, plate: Array, places: Array) -> Array:
    """Where the places [p, 2] of one example go."""
    points = identity_grid(len(plate), len(plate), corners=True).reshape(-1, 2)
    away = jnp.abs(places[:, None] - points).sum(-1)
    bent = (away**2 * jnp.log(away + 1e-6)) @ plate.reshape(-1)
    return places @ affine[:, :2].T + affine[:, 2] + bent[:, None]


def random_bends(draws: Draws, affine: float, plate: float, points: int) -> Bend:
    """Draws maps with these deviations from the identity."""
    flat = draws.named("bend.affine").normal((2, 3)) * affine + jnp.eye(2, 3)
    return Bend(flat, draws.named("bend.plate").normal((points, points)) * plate)


@geometry()
def equivariance(bend: Bend, regions: Regions, bent: Regions) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far regions of bent pictures are from those of the pictures, bent: mean distances of centres and of axes.

    Both are 0 where the predictor moves with the picture.
    """
    shift = jnp.abs(regions.center - bend(bent.center)).mean()
    turned = bend.jacobian(bent.center) @ bent.affine
    apart = upright(inverse(regions.affine) @ turned) - jnp.eye(2)
    return shift, jnp.abs(apart).mean()


def flow_autoencoder(
    model: Any,
    batch: Batch,
    draws: Draws,
    *,
    pixel_weight: float = 10.0,
    perceptual_weight: float = 10.0,
    scales: Sequence[int] = (1, 2, 4, 8),
    equivariance_weight: float = 10.0,
    bend_affine: float = 0.05,
    bend_plate: float = 0.005,
    bend_points: int = 5,
) -> tuple[Float[Array, ""], Metrics]:
    """Distance of a frame from what another one of its clip is warped to, and `equivariance`.

    The distance is that of pixels and, with weights of VGG, of what it sees (LPIPS; LFDM's own is of VGG19's features),
    at 1 / each of `scales`, where these are 16x16 or larger. bend_affine, bend_plate, bend_points: see `random_bends`.
    """
    x = to_unit(batch["video"]).astype(model.dtype)
    pair = lambda key, clip: clip[jax.random.permutation(key, len(clip))[:2]]
    source, driving = jnp.moveaxis(jax.vmap(pair)(draws.named("pair").keys, x), 1, 0)
    bend, corners = random_bends(draws, bend_affine, bend_plate, bend_points), model.config.corners
    bent = bend.frames(driving, corners)
    regions, b = model.find(jnp.concatenate([source, driving, bent])), len(x)
    of_source, of_driving, of_bent = (jax.tree.map(lambda a, i=i: a[i * b : (i + 1) * b], regions) for i in range(3))
    made = model.paint(source, model.motion(source, driving, of_source, of_driving))
    apart = {"reconstruction": jnp.zeros(())}
    loss = jnp.zeros(())
    for scale in scales:
        ours, real = (shrink(each, scale, corners).astype(jnp.float32) for each in (made, driving))
        apart["reconstruction"] += jnp.abs(ours - real).mean() / len(scales)
        if hasattr(model, "perceptual") and min(ours.shape[1:3]) >= SEEN:
            seen = model.perceptual(ours[:, None], real[:, None]).mean()
            apart["perceptual"] = apart.get("perceptual", 0.0) + seen / len(scales)
    loss += pixel_weight * apart["reconstruction"] + perceptual_weight * apart.get("perceptual", 0.0)
    shift, axes = equivariance(bend, of_driving, of_bent)
    loss += equivariance_weight * (shift + (axes if model.config.affine else 0.0))
    still = jnp.abs(source - driving).astype(jnp.float32).mean()  # what no motion at all would leave
    return loss, {**apart, "shift": shift, "axes": axes, "still": still}
