"""Adapters against peft's in diffusers' U-Net: ours load there, theirs here, both say the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from safetensors.numpy import save_file  # noqa: E402

from vidjax.errors import InputError  # noqa: E402
from vidjax.models.keys import OneKey  # noqa: E402
from vidjax.models.lora import add_lora, layers_of, lora_tensors, merge_loras  # noqa: E402
from vidjax.models.parameters import merge, parameters  # noqa: E402
from vidjax.models.unet import UNet, UNetConfig  # noqa: E402
from vidjax.weights import convert, lora  # noqa: E402
from vidjax.weights import diffusers as rules  # noqa: E402

THEIRS = dict(
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=24,
    norm_num_groups=8,
    attention_head_dim=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
OURS = UNetConfig(
    channels=(32, 64), blocks_per_level=1, attention_levels=(True, False), tokens_dim=24, groups=8, heads=4
)
MODULES = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj", "conv_shortcut", "proj_in"]
LAYERS = r"\.(to_q|to_k|to_v|to_out|ff\.proj_in|ff\.proj_out|time_emb_proj|conv_shortcut)$|attention\.proj_in$"
RANDOM = np.random.default_rng(0)
X, TOKENS = (RANDOM.standard_normal(shape, dtype=np.float32) for shape in ((2, 1, 6, 4, 4), (2, 5, 24)))
T = np.array([3, 741])


def reference():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**THEIRS).eval()


def ours(model):
    mine = nnx.eval_shape(lambda: UNet(OURS, rngs=OneKey()))
    convert.load(mine, {k: v.numpy() for k, v in model.state_dict().items()}, rules.unet(1))
    return mine


def their_output(model):
    with torch.no_grad():
        x = torch.from_numpy(np.moveaxis(X[:, 0], -1, 1))
        out = model(x, torch.from_numpy(T), torch.from_numpy(TOKENS)).sample
    return np.moveaxis(out.numpy(), 1, -1)[:, None]


def whole(params):
    """As in a model that has more than the U-Net."""
    return {f"unet.{path}": value for path, value in params.items()}


@jax.jit
def our_output(params):
    graph = nnx.graphdef(nnx.eval_shape(lambda: UNet(OURS, rngs=OneKey())))
    return merge(graph, {path.removeprefix("unet."): value for path, value in params.items()})(
        jnp.asarray(X), jnp.asarray(T)[:, None], jnp.asarray(TOKENS)
    )


def error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def randomised(tensors):
    """As if trained."""
    return {k: v if k.endswith("alpha") else 0.2 * RANDOM.standard_normal(v.shape, "f") for k, v in tensors.items()}


@pytest.mark.parametrize("alpha, kohya", [(4, False), (10.0, False), (10.0, True)])
def test_ours_load_in_diffusers(tmp_path, alpha, kohya):
    model = reference()
    mine, plain = ours(model), their_output(model)
    base = whole(parameters(mine))
    layers = add_lora(mine, LAYERS, rank=4, alpha=alpha, rngs=nnx.Rngs(0))
    tensors = randomised(whole(lora_tensors(mine)))
    file = lora.save(tmp_path, tensors, blocks_per_level=1, kohya=kohya)
    if kohya:
        state, alphas = diffusers.StableDiffusionPipeline.lora_state_dict(tmp_path, weight_name=file.name)
        model.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    else:
        model.load_lora_adapter(tmp_path, prefix="unet", weight_name=file.name)
    adapted = [name for name, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert len(adapted) == len(layers) > 40
    expected = their_output(model)
    assert error(plain, expected) > 0.05
    assert error(our_output(merge_loras(base, {"own": (tensors, 1.0)})), expected) <= 1e-5
    again = lora.load(file, blocks_per_level=1)
    assert error(our_output(merge_loras(base, {"own": (again, 1.0)})), expected) <= 1e-5


def peft_adapter(model, **options):
    """A random adapter that peft put into the model, and its tensors by diffusers' names."""
    model.add_adapter(peft.LoraConfig(r=4, target_modules=MODULES, **options))
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = 0.2 * torch.randn(p.shape, generator=generator)
    return peft.get_peft_model_state_dict(model)


def test_theirs_load_here_with_their_alphas(tmp_path):
    model = reference()
    base = whole(parameters(ours(model)))
    options = dict(lora_alpha=6, alpha_pattern={"to_k": 3, "ff.net.2": 9}, rank_pattern={"to_v": 2})
    state = peft_adapter(model, **options)
    config = model.peft_config["default"].to_dict()
    metadata = {k: list(v) if isinstance(v, set) else v for k, v in config.items()}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=metadata
    )
    tensors = lora.load(tmp_path, blocks_per_level=1)
    assert {tensors[k] for k in tensors if k.endswith("alpha")} == {3.0, 6.0, 9.0}
    got = our_output(merge_loras(base, {"theirs": (tensors, 1.0)}))
    expected = their_output(model)
    assert error(got, expected) <= 1e-5
    weaker = our_output(merge_loras(base, {"theirs": (tensors, 0.5)}))
    model.set_adapters("default", 0.5)
    assert error(weaker, their_output(model)) <= 1e-5 and error(weaker, expected) > 1e-2


def test_older_names_and_alpha_keys_say_the_same(tmp_path):
    model = reference()
    state = {f"unet.{k}": v.numpy() for k, v in peft_adapter(model, lora_alpha=6).items()}
    base, expected = whole(parameters(ours(reference()))), their_output(model)
    old = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in state.items()}
    old |= {k.replace("lora_A.weight", "alpha"): np.full((), 6, "f") for k in state if "lora_A" in k}
    save_file(old, tmp_path / lora.FILE)
    save_file({k: v.astype(jnp.bfloat16) for k, v in old.items()}, tmp_path / "bf16.safetensors")
    half = our_output(merge_loras(base, {"half": (lora.load(tmp_path / "bf16.safetensors", 1), 1.0)}))
    assert 0 < error(half, expected) <= 2e-2
    got = our_output(merge_loras(base, {"old": (lora.load(tmp_path, 1), 1.0)}))
    assert error(got, expected) <= 1e-5


def test_every_layer_that_can_be_adapted_has_its_key_back(tmp_path):
    """For each family: from the reference's own module names to our paths and back."""
    motion = dict(down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), motion_num_attention_heads=2)
    motion |= dict(up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), num_attention_heads=2)
    video = dict(down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), attention_head_dim=8)
    video |= dict(up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"))
    small = {k: v for k, v in THEIRS.items() if k not in (*motion, *video)}
    for kind, options, there, back in [
        ("UNet2DConditionModel", THEIRS | dict(layers_per_block=2), (), ()),
        ("UNetMotionModel", small | motion, rules.ANIMATEDIFF, rules.ANIMATEDIFF_KEYS),
        ("UNet3DConditionModel", small | video, rules.MODELSCOPE, rules.MODELSCOPE_KEYS),
    ]:
        model, n = getattr(diffusers, kind)(**options), options["layers_per_block"]
        names = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
        assert len(names) > 20
        halves = {f"unet.{name}.lora_{end}.weight": np.ones((2, 2), "f") for name in names for end in "AB"}
        save_file(halves, tmp_path / lora.FILE)
        expected = {f"unet.{convert.rename(f'{name}.', [*there, *rules.unet(n)]).rstrip('.')}" for name in names}
        assert set(layers_of(lora.load(tmp_path, n))) == expected  # whatever the family
        save_file({key_of_kohya(key): value for key, value in halves.items()}, tmp_path / lora.FILE)
        assert set(layers_of(lora.load(tmp_path, n))) == expected
        for name in names:
            path = convert.rename(f"{name}.", [*there, *rules.unet(n)]).rstrip(".")
            assert convert.rename(lora.module_key(path, n), back) == name


def key_of_kohya(key):
    layer, end, _ = key.rsplit(".", 2)
    return f"{lora.kohya_key(layer)}.{'lora_down' if end == 'lora_A' else 'lora_up'}.weight"


def test_files_that_are_no_adapters_are_errors_of_one_line(tmp_path):
    with pytest.raises(InputError, match="can't be read as safetensors"):
        lora.load(tmp_path, 1)
    save_file({"vae.a.lora_A.weight": np.ones((2, 3), np.float32)}, tmp_path / lora.FILE)
    with pytest.raises(InputError, match=r"has vae\.a\.lora_A\.weight, which is no adapter of a U-Net"):
        lora.load(tmp_path, 1)
    save_file({"unet.a.lora_A.weight": np.ones((2, 3), np.float32)}, tmp_path / lora.FILE)
    with pytest.raises(InputError, match=r"lacks unet\.a\.lora_up"):
        lora.load(tmp_path, 1)
    save_file({"unet.a.lora_A.weight": np.ones((2, 3, 3, 3), np.float32)}, tmp_path / lora.FILE)
    with pytest.raises(InputError, match=r"has shape \(2, 3, 3, 3\); only adapters of linear layers"):
        lora.load(tmp_path, 1)
    with pytest.raises(InputError, match=r"text\.to_q is not one of a U-Net"):
        lora.save(tmp_path, {"text.to_q.lora_down": np.ones((3, 2)), "text.to_q.lora_up": np.ones((2, 3))}, 1)
