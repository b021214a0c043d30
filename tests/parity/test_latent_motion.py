"""Translations of latents against the pipeline in `diffusers`, made from the paper's released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pipeline = pytest.importorskip(
    "diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero",
    reason="this version of diffusers has no Text2Video-Zero",
)

from vidjax.diffusion.latent_motion import displacements, translate  # noqa: E402


@pytest.mark.parametrize("strength", [(12, 12), (10, -4), (-7, 3), (0, 40)])
def test_translation(strength):
    """Their strengths (right, down) are in pixels of 512 x 512 pictures, against the motion: 8 are a latent."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 64, 64, 4)))
    frames = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).repeat(5, 1, 1, 1)
    theirs = pipeline.create_motion_field_and_warp_latents(*strength, frame_ids=list(range(5)), latents=frames)
    shifts = displacements(5, (-strength[1] / 8, -strength[0] / 8))
    ours = translate(jnp.repeat(x[None], 5, 1), shifts)[0]
    np.testing.assert_array_equal(ours, theirs.numpy().transpose(0, 2, 3, 1))
