"""The stages of recipes compile for TPUs and GPUs as they are meant to, by XLA's own compilers for them.

Each kind of layer stands at least once for each platform, each stage and mesh once. A stage whose network differs from
another's in numbers alone is for one platform; programs whose parts others have are left out: lvdm:long and
sky_interpolation (lvdm:sky has their latents, vdm:ucf101 their known frames), lvdm:webvid (lvdm_text its blocks,
lvdm:clips its captions), the autoencoder of lvdm:clips (lvdm:adversary), vdm:clips, dreambooth:full and :lora
(dreambooth:text, motion_director) and :video, tune_a_video:dreamix (align_latents, motion_director's frames). The
kernels, collectives and dtypes that are looked for are those of the design, whatever the model's width.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from accelerators.programs import QUICK, Program, mesh_of, training, using
from flax import nnx

from vidjax.models.convolution import Conv
from vidjax.models.kernels.attention import cudnn
from vidjax.models.layers import linear
from vidjax.models.unet import REMAT
from vidjax.profiling import chips
from vidjax.profiling.program import aliased, collectives, kernels, products
from vidjax.runtime import sharding

TPU, GPU = "v5e-1", "h100x1"
FLASH = {
    "tpu": (r"splash_mha_fwd|short_attention_\d+_forward", r"splash_mha_dkv|short_attention_\d+_backward"),
    "gpu": (r"__cudnn\$fmhaSoftmax", r"__cudnn\$fmhaSoftmaxBackward"),
}
pytestmark = pytest.mark.skipif(
    any(chips.devices(name) is None for name in (TPU, GPU)), reason="wants pip install -e '.[accelerators]'"
)
# (recipe, stage, whether it has attention over 128 tokens or more, which a flash kernel does; platforms).
TRAINED = [
    ("lvdm:sky", "autoencoder", False, (TPU, GPU)),
    ("lvdm:sky", "diffusion", True, (TPU, GPU)),
    ("lvdm_text:paper", "diffusion", True, (TPU,)),
    ("imagen_video:paper", "base", True, (TPU, GPU)),
    ("imagen_video:paper", "temporal", True, (GPU,)),
    ("imagen_video:paper", "spatial", True, (GPU,)),
    ("vdm:ucf101", "diffusion", True, (GPU,)),  # on TPUs: four of them, below
    ("tune_a_video:default", "tune", True, (TPU, GPU)),
    ("tune_a_video:released", "tune", True, (GPU,)),
    ("dreambooth:text", "tune", True, (GPU,)),
    ("align_latents:default", "temporal", True, (TPU,)),
    ("align_latents:default", "decoder", True, (GPU,)),
    ("motion_director:default", "appearance", True, (GPU,)),
    ("motion_director:default", "motion", True, (TPU,)),
    ("animate_diff:default", "motion", True, (GPU,)),
    ("svd:temporal", "tune", True, (GPU,)),
    ("i2vgen:full", "tune", True, (GPU,)),
    ("videocrafter:temporal", "tune", True, (GPU,)),
    ("lfdm:mug", "flow_autoencoder", False, (GPU,)),
    ("lfdm:mug", "diffusion", True, (GPU,)),
    ("ddpm:cifar10", "diffusion", True, (TPU, GPU)),
    ("lvdm:clips", "diffusion", False, (GPU,)),
    ("lvdm:adversary", "autoencoder", False, (GPU,)),
]
USED = [
    ("sampling", "tune_a_video:default", "tune", True),
    ("inversion", "tune_a_video:default", "tune", True),
    ("encoding", "lvdm:sky", "diffusion", False),
    ("decoding", "lvdm:sky", "diffusion", False),
]
# (recipe, stage, topology, data x fsdp x tensor x context, collectives that there must be, and may be none but).
CUT = [
    ("vdm:ucf101", "diffusion", "v5e-4", (4, 1, 1, 1), {"all-reduce"}, {"all-reduce"}),
    ("tune_a_video:default", "tune", "v6e-16", (2, 2, 2, 2), {"all-reduce", "all-gather", "all-to-all"}, ANY := {
        "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute"}),
    ("lvdm:sky", "diffusion", "h100x4", (4, 1, 1, 1), {"all-reduce"}, {"all-reduce"}),
    ("tune_a_video:default", "tune", "h100x4", (1, 1, 2, 2), {"all-reduce", "all-to-all"}, ANY),
]  # fmt: skip
# Products that are fp32 whatever the dtype of training, and why.
WIDE = {
    "_resize": "a cascade's stage makes the video below of pixels, by a product with weights between them",
    "ih,jw,": "pictures are scaled by products with weights between pixels, for CLIP and for regions of a flow",
    "geometry": "where regions of a flow are, how they lie and move: products of places, of two numbers each",
    "mean_of_groups": "a norm's means over groups of channels are fp32, on TPUs by products with ones",
    "sum_of_rows": "the gradients of a norm's scale and bias, on TPUs products with ones, are sums of fp32",
}


def check(program: Program, platform: str, flash: bool, backward: bool) -> None:
    """What holds of each program, whatever it is of."""
    found = kernels(program.text)
    for name in FLASH[platform][: 1 + backward]:
        wanted = flash and (platform == "tpu" or program.dtype == "bfloat16")
        assert any(re.match(name, kernel) for kernel in found) == wanted, found
    if program.dtype == "bfloat16":
        wide = {each.scope for each, factors in products(program.text) if "f32" in factors}
        assert not {scope for scope in wide if not any(name in scope for name in WIDE)}
        if platform == "gpu":  # features before space are not for its tensor cores
            assert "dim_labels=bf" not in program.text
    assert len(aliased(program.text)) >= program.state


@pytest.mark.parametrize(("name", "stage", "topology", "axes", "some", "none_but"), CUT)
def test_a_step_over_a_mesh(name, stage, topology, axes, some, none_but):
    program = training(name, stage, topology, axes)
    check(program, chips.named(topology)[0].platform, True, backward=True)
    kinds = {kind for kind, _ in collectives(program.text)}
    assert some <= kinds <= none_but


@pytest.mark.parametrize("layer", [Conv(256, 256, rngs=nnx.Rngs(0)), linear(256, 256, rngs=nnx.Rngs(0))])
def test_weights_that_fsdp_cuts_travel_before_they_are_multiplied(layer):
    """No device's part of them is multiplied by itself, as chains of permutations would have it."""
    mesh = mesh_of("v5e-4", (1, 4, 1, 1))
    graphdef, state = nnx.split(layer)
    place = lambda leaf: sharding.parameter_sharding(mesh, "", leaf.shape)
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf))
    state = jax.tree.map(shape, state)
    x = jax.ShapeDtypeStruct((16, 1, 16, 16, 256), jnp.bfloat16, sharding=sharding.batch_sharding(mesh))

    def loss(state, x):
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state)
        return jnp.square(nnx.merge(graphdef, half)(x).astype(jnp.float32)).sum()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(jax.tree.map(place, state), x.sharding))
        text = step.lower(state, x).compile(compiler_options=QUICK["tpu"]).as_text()
    kinds = {kind for kind, _ in collectives(text)}
    assert "all-gather" in kinds and "collective-permute" not in kinds


@pytest.mark.parametrize(("remat", "forward"), [("attention", 2), ("full", 4)])
def test_flash_attention_of_a_gpu_that_is_kept_does_not_run_again(remat, forward):
    mesh = mesh_of(GPU, (1, 1, 1, 1))
    x = jax.ShapeDtypeStruct((1, 256, 128), jnp.bfloat16, sharding=sharding.replicated(mesh))
    layer = jax.checkpoint(lambda x: jnp.sin(cudnn(jnp.sin(x), x, x, 64)), policy=REMAT[remat])
    loss = lambda x: layer(layer(x)).astype(jnp.float32).sum()
    with jax.set_mesh(mesh):
        found = kernels(jax.jit(jax.value_and_grad(loss)).lower(x).compile(QUICK["gpu"]).as_text())
    assert found["__cudnn$fmhaSoftmax"] == forward and found["__cudnn$fmhaSoftmaxBackward"] == 2


@pytest.mark.parametrize(
    ("name", "stage", "flash", "topology"),
    [(name, stage, flash, topology) for name, stage, flash, where in TRAINED for topology in where],
)
def test_a_training_step(name, stage, flash, topology):
    program = training(name, stage, topology)
    check(program, chips.named(topology)[0].platform, flash, backward=True)
    assert not list(collectives(program.text))
    if topology == GPU:  # TPUs fill up narrow arrays to their tiles
        assert program.memory.argument_size_in_bytes == pytest.approx(program.given, rel=0.01)


@pytest.mark.parametrize("topology", [TPU, GPU])
@pytest.mark.parametrize(("what", "name", "stage", "flash"), USED)
def test_what_a_model_is_used_for(what, name, stage, flash, topology):
    check(using(what, name, stage, topology), chips.named(topology)[0].platform, flash, backward=False)
