"""Tune-A-Video against its layers, which no class has today, put into diffusers' image U-Net, on random weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from parity.gradients import check_gradients  # noqa: E402
from parity.test_pipeline import PROMPTS, error, noise_like, pipeline, tuned  # noqa: E402

from vidjax.generation.pretrained import load_generator  # noqa: E402
from vidjax.weights import convert, pretrained  # noqa: E402
from vidjax.weights.configs import unet_config  # noqa: E402
from vidjax.weights.diffusers import unet as skeleton  # noqa: E402
from vidjax.weights.folder import Folder  # noqa: E402

FRAMES = 3


def by_clip(x):
    """Frames, which are the batch, as an axis of their own."""
    return x.unflatten(0, (-1, FRAMES))


def attend(attn, x, encoder_hidden_states=None, look=lambda a: a, **_):
    """Attention whose keys and values are what `look` makes of those of all frames."""
    heads = lambda a: a.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    q, k, v = (heads(f) for f in (attn.to_q(x), look(attn.to_k(x)), look(attn.to_v(x))))
    return attn.to_out[0](torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def first_and_previous(a):
    """The first frame's tokens, then those of the frame before, the first one's again for itself."""
    a = by_clip(a)
    return torch.cat([a[:, [0] * FRAMES], a[:, [0, *range(FRAMES - 1)]]], 2).flatten(0, 1)


def over_time(block, _, x):
    """A transformer block's output, each place of which has looked at itself in all frames."""
    places = by_clip(x).transpose(1, 2)
    seen = attend(block.attn_temp, block.norm_temp(places).flatten(0, 1)).unflatten(0, places.shape[:2])
    return (places + seen).transpose(1, 2).flatten(0, 1)


def over_the_clip(norm, x):
    """A GroupNorm of all frames at once."""
    whole = by_clip(x).transpose(1, 2)
    whole = torch.nn.functional.group_norm(whole, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return whole.transpose(1, 2).flatten(0, 1)


def as_video(network):
    """Their image U-Net with Tune-A-Video's layers, under their names there."""
    for module in list(network.modules()):
        if isinstance(module, diffusers.models.attention.BasicTransformerBlock):
            width, heads = module.attn1.to_q.in_features, module.attn1.heads
            module.attn1.set_processor(partial(attend, look=first_and_previous))
            module.attn_temp = diffusers.models.attention.Attention(width, heads=heads, dim_head=width // heads)
            module.norm_temp = torch.nn.LayerNorm(width)
            module.register_forward_hook(over_time)
        for name in ("norm1", "norm2", "conv_norm_out"):
            if isinstance(norm := getattr(module, name, None), torch.nn.GroupNorm):
                norm.forward = partial(over_the_clip, norm)
    return network.eval()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(a folder of a tuned model as its code would write it, a pipeline of diffusers whose U-Net is the video's)."""
    root = tmp_path_factory.mktemp("tune_a_video")
    pipe = pipeline(root / "image", "sd1")
    pretrained.save(tuned(root / "image", norm_over="clip"), root / "image", root / "video")
    state = {key: torch.from_numpy(np.array(value)) for key, value in Folder(root / "video").tensors("unet").items()}
    as_video(pipe.unet).load_state_dict(state)  # raises for keys that are missing or too many
    return root / "video", pipe


def test_the_network_and_its_gradients(both):
    folder, pipe = both
    x, tokens, weight = noise_like((2, FRAMES, 7, 5, 4)), noise_like((2, 5, 24)), noise_like((2, FRAMES, 7, 5, 4))[::-1]
    t = np.array([3, 741])
    frames = lambda a: torch.from_numpy(np.moveaxis(a, -1, 2).copy()).flatten(0, 1)
    often = lambda a: torch.from_numpy(a).repeat_interleave(FRAMES, 0)
    pipe.unet.zero_grad()
    out = pipe.unet(frames(x), often(t), often(tokens)).sample
    (out * frames(weight)).sum().backward()
    graph, state = nnx.split(pretrained.load(folder).model.unet)

    def loss(state):
        got = nnx.merge(graph, state)(jnp.asarray(x), jnp.broadcast_to(t[:, None], (2, FRAMES)), jnp.asarray(tokens))
        return (got * weight).sum(), got

    (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    assert error(got, np.moveaxis(by_clip(out.detach()).numpy(), 2, -1)) <= 1e-5
    grads = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(grads)}
    expected = {key: value.grad.numpy() for key, value in pipe.unet.named_parameters()}
    rules = [*unet_config(Folder(folder).config("unet"))[1], *skeleton(1)]
    expected = convert.fit({path: value.shape for path, value in grads.items()}, expected, rules)
    assert sum("temp" in path for path in expected) > 10
    check_gradients(grads, expected)


def test_ten_steps_of_the_whole_pipeline(both):
    """Their pipeline takes frames for pictures of one prompt."""
    folder, pipe = both
    noise = noise_like((1, FRAMES, 8, 8, 4))
    expected = pipe(
        PROMPTS[0],
        num_images_per_prompt=FRAMES,
        num_inference_steps=10,
        latents=torch.from_numpy(np.moveaxis(noise[0], -1, 1).copy()),
        output_type="latent",
        guidance_scale=7.5,
    ).images
    got = load_generator(folder).latents(PROMPTS[:1], frames=FRAMES, noise=noise, num_steps=10, guidance_scale=7.5)
    assert error(got[0], np.moveaxis(expected.numpy(), 1, -1)) <= 1e-3
