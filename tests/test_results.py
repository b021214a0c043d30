"""What a finished run shows are the samples themselves, and beside each the held-out window that is nearest to it."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vidjax.data.video_io import probe, read_frames, slug
from vidjax.models.autoencoder import Posterior
from vidjax.results import beside_real, next_lines, rate_distortion, write_samples


def clips(*levels, frames=4):
    """Videos of one grey each, [n, t, h, w, c]."""
    return np.stack([np.full((frames, 16, 16, 3), level, np.uint8) for level in levels])


def film(path):
    return read_frames(path, range(probe(path).frames))


def test_samples_are_written_in_order_side_by_side(tmp_path):
    names = ["A man / a <b>plan</b>", "a man, a b plan b"]
    entries = write_samples(tmp_path, names, [clips(10, 200), clips(90, 40)], 8.0)
    assert [entry["caption"] for entry in entries] == names
    assert len({entry["mp4"] for entry in entries}) == 2  # although both captions make one file name
    for entry, levels in zip(entries, [(10, 200), (90, 40)]):
        left_and_right = film(tmp_path / entry["mp4"]).reshape(4, 16, 2, 16, 3).mean((0, 1, 3, 4))
        np.testing.assert_allclose(left_and_right, levels, atol=3)
        sheet = np.asarray(Image.open(tmp_path / entry["png"]))
        for level in levels:  # every frame of every sample is in the sheet, as it is
            assert (sheet[..., :3] == level).all(-1).sum() >= 4 * 16 * 16


def test_images_make_sheets_and_no_films(tmp_path):
    (entry,) = write_samples(tmp_path, ["class 3"], [clips(10, 200, frames=1)], 8.0)
    assert set(entry) == {"caption", "png"} and not list(tmp_path.rglob("*.mp4"))


def test_the_nearest_window_of_the_own_clip_stands_beside_each_sample(tmp_path):
    samples, heldout = [clips(100, 180), clips(30)], [clips(20, 110, 170), clips(100, 40)]
    entries = write_samples(tmp_path, ["a", "b"], samples, 8.0)
    beside_real(tmp_path, entries, samples, heldout, 8.0)
    np.testing.assert_allclose(film(tmp_path / entries[0]["real"])[:, :, [4, 28]].mean((0, 1, 3)), [110, 170], atol=3)
    np.testing.assert_allclose(film(tmp_path / entries[1]["real"]).mean(), 40, atol=3)


def test_slugs_are_safe_file_names():
    assert slug("../../A b_C!") == "a-b-c" and slug("日本") == "sample" and len(slug("x" * 500)) <= 48


def test_the_rate_is_the_posteriors_kl_in_bits_a_pixel():
    """Of mean m and variance 1 it is m^2 / 2 nats a latent."""
    posterior = Posterior(jnp.full((2, 2, 2, 2, 3), 2.0), jnp.zeros((2, 2, 2, 2, 3)))
    noise = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    figures = rate_distortion([noise], [noise], [np.asarray(posterior.kl())])
    assert np.isclose(figures["autoencoder_bits_per_pixel"], 2 * 24 / np.log(2) / (4 * 16 * 16))
    assert np.isclose(figures["autoencoder_ssim"], 1) and figures["autoencoder_sharpness"] == 1


@pytest.mark.parametrize("conditions, asks", [(("text",), '--prompt "a cat" '), (("label",), "--label 0 "), ((), "")])
def test_the_next_command_asks_for_what_the_model_knows(conditions, asks):
    line, _ = next_lines(Path("w"), conditions, "a cat")
    assert line == f"python -m vidjax.sample --workdir w {asks}--num_steps 50 --seed 1"
