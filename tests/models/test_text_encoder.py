"""What byte ids stand for, and that padding leaves no trace."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidjax.models.text_encoder import GRAMS, ByteTextEncoder, byte_ids, hashes


def encoder():
    return ByteTextEncoder(16, 2, 2, 12, rngs=nnx.Rngs(0))


def batch(*texts, length=12):
    return jnp.stack([jnp.asarray(byte_ids(text, length)) for text in texts])


def test_byte_ids_are_the_bytes_and_padding():
    for text in ("", "a car", "naïve 猫"):
        ids = byte_ids(text, 12)
        np.testing.assert_array_equal(ids[len(text.encode()) :], 0)
        assert bytes((ids[ids > 0] - 1).tolist()).decode() == text
    assert len(byte_ids("far too long for it", 12)) == 12
    assert not byte_ids("", 12).any()


def test_padding_leaves_no_trace():
    model = encoder()
    short, long = (jax.jit(model)(batch("a cat", "", length=n)) for n in (7, 12))
    for a, b, mask in zip(short[0], long[0], short[2]):
        np.testing.assert_allclose(a[mask], b[:7][mask], atol=1e-5)
    np.testing.assert_allclose(short[1], long[1], atol=1e-5)
    np.testing.assert_array_equal(long[2].sum(1), [5, 1])


def test_every_text_even_none_has_its_own_finite_vector():
    tokens, vector, _ = encoder()(batch("", "a cat", "tac a", "a cat in"))
    assert np.isfinite(tokens).all()
    apart = np.linalg.norm(vector[:, None] - vector[None], axis=-1)
    assert (apart[~np.eye(4, dtype=bool)] > 0.5).all()  # of vectors of norm 4
    np.testing.assert_allclose(jnp.square(vector).mean(1), 1, rtol=1e-3)


def test_a_hash_depends_on_its_own_bytes_only():
    for gram in GRAMS:
        codes = hashes(batch("car", "a car", "b car", "a cat"), gram)
        assert codes[1, 4] == hashes(batch("  a car"), gram)[0, 6]
        assert codes[1, 4] != codes[3, 4]
    assert hashes(batch("a car"), 3)[0, 4] == hashes(batch("b car"), 3)[0, 4]
    assert hashes(batch("a car"), 5)[0, 4] != hashes(batch("b car"), 5)[0, 4]
