"""Both towers of CLIP against transformers', random weights in every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from vidjax.models.clip import ClipImage, ClipImageConfig, ClipText, ClipTextConfig  # noqa: E402
from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.weights.clip import BUFFERS, IMAGE, TEXT  # noqa: E402
from vidjax.weights.convert import load  # noqa: E402

SIZE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, projection_dim=20)
OURS = dict(dim=32, hidden=48, layers=3, heads=4)
IDS = np.array([[0, 5, 9, 27, 28, 1, 1, 1], [0, 28, 1, 1, 1, 1, 1, 1], [0, 3, 4, 5, 6, 7, 8, 28]])
REAL = IDS != 1


def refilled(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(1 + 0.2 * noise if is_scale else noise * (0.2 if p.ndim == 1 else p[0].numel() ** -0.5))
    return model.eval()


def loaded(make, reference, rules):
    model = nnx.eval_shape(lambda: make(rngs=OneKey()))
    load(model, {key: value.numpy() for key, value in reference.state_dict().items()}, rules, ignore=BUFFERS)
    return model


def error(got, expected):
    expected = expected.numpy()
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


# Both ids say where the text ends: 28 is the highest, and 2 is what old configs call it.
@pytest.mark.parametrize("eos", [2, 28])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
def test_text(eos, activation, masked):
    config = transformers.CLIPTextConfig(
        **SIZE,
        vocab_size=30,
        max_position_embeddings=8,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=eos,
        pad_token_id=1,
    )
    ours = ClipTextConfig(**OURS, activation=activation, vocabulary=30, length=8, eos=eos)
    reference = refilled(transformers.CLIPTextModel(config))
    model = loaded(lambda rngs: ClipText(ours, rngs=rngs), reference, TEXT)
    with torch.no_grad():
        out = reference(torch.from_numpy(IDS), torch.from_numpy(REAL.astype(int)) if masked else None)
    tokens, pooled = jax.jit(lambda ids, mask: model(ids, mask))(jnp.asarray(IDS), REAL if masked else None)
    assert error(tokens, out.last_hidden_state) <= 1e-5
    assert error(pooled, out.pooler_output) <= 1e-5


def test_where_the_text_ends():
    """Padding with the end itself, as Stable Diffusion 1 does: the first one counts. Higher ids may follow it."""
    config = ClipTextConfig(**OURS, vocabulary=30, length=8, eos=25)
    model = ClipText(config, rngs=nnx.Rngs(0))
    tokens, pooled = model(jnp.array([[0, 5, 25, 25, 29, 25]]))
    np.testing.assert_array_equal(pooled[0], tokens[0, 2])


def test_text_projection():
    config = transformers.CLIPTextConfig(**SIZE, vocab_size=30, max_position_embeddings=8, eos_token_id=28)
    ours = ClipTextConfig(**OURS, vocabulary=30, length=8, eos=28, projection=20)
    reference = refilled(transformers.CLIPTextModelWithProjection(config))
    model = loaded(lambda rngs: ClipText(ours, rngs=rngs), reference, TEXT)
    with torch.no_grad():
        out = reference(torch.from_numpy(IDS))
    tokens, embedding = jax.jit(lambda ids: model(ids))(jnp.asarray(IDS))
    assert error(tokens, out.last_hidden_state) <= 1e-5
    assert error(embedding, out.text_embeds) <= 1e-5


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image(activation):
    config = transformers.CLIPVisionConfig(**SIZE, image_size=12, patch_size=4, hidden_act=activation)
    ours = ClipImageConfig(**OURS, size=12, patch=4, activation=activation, projection=20)
    reference = refilled(transformers.CLIPVisionModelWithProjection(config))
    model = loaded(lambda rngs: ClipImage(ours, rngs=rngs), reference, IMAGE)
    frames = np.random.default_rng(0).uniform(-1, 1, (2, 12, 12, 3)).astype(np.float32)
    pixels = ((frames + 1) / 2 - np.array(ours.mean)) / np.array(ours.std)
    with torch.no_grad():
        out = reference(torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)))
    tokens, embedding = jax.jit(lambda x: model(x))(jnp.asarray(frames))
    assert error(tokens, out.last_hidden_state) <= 1e-5
    assert error(embedding, out.image_embeds) <= 1e-5
