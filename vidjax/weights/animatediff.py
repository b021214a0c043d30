"""AnimateDiff (Guo et al. 2024): motion modules in a pipeline's U-Net, and adapters of them for any Stable Diffusion 1.

An adapter is a MotionAdapter folder of diffusers, a file in the layout of AnimateDiff's own code, or a new one by name.
Theirs takes the norm of a motion module over each frame, diffusers over the clip; what is read computes as the code
whose layout it has.
"""

import collections
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from vidjax.errors import InputError
from vidjax.models.attention import sinusoid_interleaved
from vidjax.models.clip import ClipTextConfig
from vidjax.models.layers import Over
from vidjax.models.unet import Temporal, UNetConfig
from vidjax.runtime.storage import write_json
from vidjax.settings import choose
from vidjax.weights.configs import expect, require, unet_config
from vidjax.weights.convert import Rules, rename
from vidjax.weights.diffusers import ANIMATEDIFF, rename_blocks
from vidjax.weights.folder import INDEX, Folder, read_file, read_json, read_weights
from vidjax.weights.single_file import Renamed, SingleFile

CLASS, ADAPTER = "UNetMotionModel", "MotionAdapter"
NORM_OVER = "vidjax_motion_norm_over"  # in a folder written here, if the norms go over the frame
BUFFERS = r"\.pos_embed\.pe$"  # positions, which are computed here
NEW: dict[str, dict[str, Any]] = {  # the three that were published for Stable Diffusion 1, by what they have
    "v1": dict(mid=False, longest=24, norm_over="clip"),
    "v2": dict(mid=True, longest=32, norm_over="frame"),
    "v3": dict(mid=False, longest=32, norm_over="frame"),
}
LENGTH = 16  # frames of a clip that all of them were trained on
WANTED = f"name a folder of diffusers' MotionAdapter, a file of AnimateDiff's, or {', '.join(NEW)} for a new one"

# What a U-Net's and an adapter's config may say, see `configs.expect`.
UNET = {
    "temporal_transformer_layers_per_block": (1,),
    "temporal_transformer_layers_per_mid_block": (1, None),
    "transformer_layers_per_mid_block": (None, 1),
    "reverse_transformer_layers_per_block": (None, 1),
    "reverse_temporal_transformer_layers_per_block": (None, 1),
    "reverse_motion_num_attention_heads": (None,),
    "mid_block_layers": (1,),
    "encoder_hid_dim_type": (None,),
}
ONLY = {
    "motion_transformer_layers_per_block": 1,
    "motion_mid_block_layers_per_block": 1,
    "motion_transformer_layers_per_mid_block": 1,
    "conv_in_channels": None,
}
# Keys that a UNetMotionModel takes over from the config of an image U-Net.
SHARED = ("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups")
SHARED += ("norm_eps", "act_fn", "downsample_padding", "mid_block_scale_factor", "cross_attention_dim")
SHARED += ("use_linear_projection",)
SCHEDULER = dict(
    _class_name="DDIMScheduler",
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="linear",  # not Stable Diffusion's
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=True,
    timestep_spacing="leading",
    prediction_type="epsilon",
)

# Keys of AnimateDiff's own code to those of diffusers.
ORIGINAL: Rules = [
    (r"^module\.", ""),
    (r"\.temporal_transformer\.", "."),
    (r"\.attention_blocks\.0\.pos_encoder\.pe$", ".pos_embed.pe"),
    (r"\.attention_blocks\.([01])\.", lambda m: f".attn{int(m[1]) + 1}."),
    (r"\.norms\.([01])\.", lambda m: f".norm{int(m[1]) + 1}."),
    (r"\.ff_norm\.", ".norm3."),
]


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with one number in place of a list that says the same of every level."""
    same = lambda value: isinstance(value, list) and value and all(each == value[0] for each in value)
    lists = {"block_out_channels", "down_block_types", "up_block_types"}
    return {key: value[0] if same(value) and key not in lists else value for key, value in config.items()}


def image_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the config of a UNetMotionModel to that of the image U-Net inside it."""
    require(config, ("down_block_types", "up_block_types"), "unet/config.json")
    kinds = rename_blocks(config, "Motion", "2D")
    return {**config, **kinds, "_class_name": "UNet2DConditionModel"}


def temporal(config: Mapping[str, Any]) -> Temporal:
    """Makes the motion modules of a UNetMotionModel's config. Raises InputError."""
    levels, heads = len(config["block_out_channels"]), config.get("motion_num_attention_heads", 8)
    over = config.get(NORM_OVER, "clip")
    return Temporal(
        heads=(heads,) * levels if isinstance(heads, int) else heads,
        levels=(True,) * levels,
        mid=config.get("use_motion_mid_block", True),
        positions=True,
        norm_over=choose(over, {"frame": "frame", "clip": "clip"}, f"unet/config.json: {NORM_OVER}"),
        longest=config.get("motion_max_seq_length", 32),
    )


def read_unet(config: Mapping[str, Any], norm_over: Over | None = None) -> tuple[UNetConfig, Rules]:
    """Converts the config.json of a UNetMotionModel; also returns `ANIMATEDIFF`. Raises InputError."""
    expect(config := plain(config), UNET, "unet/config.json")
    image, _ = unet_config(image_config(config), norm_over)
    return dataclasses.replace(image, after_attention=temporal(config)), ANIMATEDIFF


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Motion modules by themselves. `tensors` have the keys of diffusers; None: they are to be trained.

    `norm_over` is what the residual blocks around them take their norms over, `motion_norm_over` their own.
    """

    name: str
    channels: tuple[int, ...] | None
    layers: int | None
    heads: int | list[int]
    mid: bool
    longest: int
    groups: int | None = None
    norm_over: Over = "frame"
    motion_norm_over: Over = "frame"
    tensors: Mapping[str, np.ndarray] | None = None


def read_adapter(path: str | Path) -> Adapter:
    """Reads a folder or a file, or makes a new one by its name. Raises InputError."""
    if str(path) in NEW:
        return Adapter(str(path), None, None, 8, **NEW[str(path)])
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise InputError(f"there is no motion adapter {path}; {WANTED}")
    return _read_original(path)


def _read_folder(path: Path) -> Adapter:
    where = f"{path / 'config.json'}"
    config = plain(read_json(path / "config.json", WANTED))
    if config.get("_class_name") != ADAPTER:
        raise InputError(f"{where}: _class_name is {config.get('_class_name')!r}, not {ADAPTER!r}; {WANTED}")
    for key, value in ONLY.items():
        if config.get(key, value) != value:
            raise InputError(f"{where}: {key} is {config[key]!r}, which is not supported; only {value!r} is")
    return Adapter(
        str(path),
        tuple(config.get("block_out_channels", (320, 640, 1280, 1280))),
        config.get("motion_layers_per_block", 2),
        config.get("motion_num_attention_heads", 8),
        config.get("use_motion_mid_block", True),
        config.get("motion_max_seq_length", 32),
        config.get("motion_norm_num_groups", 32),
        motion_norm_over=config.get(NORM_OVER, "clip"),
        norm_over=config.get("vidjax_norm_over", "frame"),
        tensors=read_weights(path),
    )


def _read_original(path: Path) -> Adapter:
    """One in the layout of AnimateDiff's code: v1 has positions for 24 frames, v2 a module in the middle."""
    tensors = read_file(path)
    kept = [key for key in tensors if ".motion_modules." in key]
    if not any(".temporal_transformer." in key for key in kept):
        raise InputError(
            f"{path} has no motion modules in the layout of AnimateDiff's code but {min(tensors, default='nothing')}; "
            f"{WANTED}"
        )
    names = {rename(key, ORIGINAL): (key, None) for key in kept}
    renamed = Renamed(tensors, {new: old for new, old in names.items() if ".pos_encoder." not in new})
    shapes = {key: tensors.places[own].shape for key, (own, _) in renamed.keys_.items()}
    number = lambda key, at: int(key.split(".")[at])
    down = {
        key: shape[0] for key, shape in shapes.items() if re.match(r"down_.*\.motion_modules\.\d+\.norm\.weight$", key)
    }
    if not down:
        raise InputError(f"{path} has no motion module in down_blocks; {WANTED}")
    longest = next((shape[-2] for key, shape in shapes.items() if re.search(BUFFERS, key)), NEW["v3"]["longest"])
    channels = {number(key, 1): width for key, width in down.items()}
    return Adapter(
        str(path),
        tuple(channels[level] for level in sorted(channels)),
        1 + max(number(key, 3) for key in down),
        8,
        any(key.startswith("mid_block.") for key in shapes),
        longest,
        norm_over="clip" if longest == NEW["v1"]["longest"] else "frame",
        tensors=renamed,
    )


def modules(channels: tuple[int, ...], layers: int, mid: bool) -> Iterator[tuple[str, int]]:
    """Yields the key of each motion module in a U-Net of that size, and its features."""
    for level, dim in enumerate(channels):
        yield from ((f"down_blocks.{level}.motion_modules.{i}", dim) for i in range(layers))
    for level, dim in enumerate(channels[::-1]):
        yield from ((f"up_blocks.{level}.motion_modules.{i}", dim) for i in range(layers + 1))
    if mid:
        yield "mid_block.motion_modules.0", channels[-1]


def shapes_of(dim: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a motion module's parameters by the ends of their keys in diffusers."""
    block, vectors = "transformer_blocks.0", {}
    for norm in ("norm", f"{block}.norm1", f"{block}.norm2", f"{block}.norm3"):
        vectors |= {f"{norm}.{end}": (dim,) for end in ("weight", "bias")}
    shapes: dict[str, tuple[int, ...]] = {**vectors}
    attentions = [f"{block}.attn{i}.{to}" for i in (1, 2) for to in ("to_q", "to_k", "to_v", "to_out.0")]
    for layer in ("proj_in", "proj_out", *attentions):
        shapes[f"{layer}.weight"] = (dim, dim)
    for layer in ("proj_in", "proj_out", f"{block}.attn1.to_out.0", f"{block}.attn2.to_out.0", f"{block}.ff.net.2"):
        shapes[f"{layer}.bias"] = (dim,)
    inside = {
        "ff.net.0.proj.weight": (8 * dim, dim),
        "ff.net.0.proj.bias": (8 * dim,),
        "ff.net.2.weight": (dim, 4 * dim),
    }
    return shapes | {f"{block}.{key}": shape for key, shape in inside.items()}


def check_adapter(adapter: Adapter, unet: Mapping[str, Any], base: Path) -> None:
    """Raises InputError unless the adapter is whole and fits the U-Net with the config `unet` in the folder `base`."""
    channels, layers = tuple(unet["block_out_channels"]), unet.get("layers_per_block", 2)
    groups = unet.get("norm_num_groups", 32)
    for what, own, there in (
        ("features", adapter.channels, channels),
        ("layers per level", adapter.layers, layers),
        ("groups of a norm", adapter.groups, groups),
    ):
        if own is not None and own != there:
            raise InputError(
                f"the motion adapter {adapter.name} is for {what} {own}, the U-Net in {base} has {there}: it belongs "
                "to another base"
            )
    if adapter.tensors is None:
        return
    wanted = {
        f"{module}.{end}": shape
        for module, dim in modules(channels, layers, adapter.mid)
        for end, shape in shapes_of(dim).items()
    }
    there = {key for key in adapter.tensors if not re.search(BUFFERS, key)}
    for keys, says in ((wanted.keys() - there, "has no"), (there - wanted.keys(), "has the unknown")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(f"the motion adapter {adapter.name} {says} {min(keys)}{more}: get it again")
    for key, shape in wanted.items():
        if (own := adapter.tensors[key].shape) != shape:
            raise InputError(f"the motion adapter {adapter.name}: {key} has shape {own}, this base wants {shape}")


def positions(longest: int, dim: int) -> np.ndarray:
    """The buffer [1, longest, dim] of frame positions in the files of diffusers."""
    return np.array(sinusoid_interleaved(longest, dim), np.float32)[None]


@dataclasses.dataclass(frozen=True)
class WithMotion:
    """A Stable Diffusion with the motion modules of an adapter, as if it were a pipeline's folder.

    Raises InputError if they do not fit each other.
    """

    base: Folder | SingleFile
    adapter: Adapter

    def __post_init__(self):
        unet = plain(self.base.config("unet"))
        if (name := unet.get("_class_name")) != "UNet2DConditionModel":
            raise InputError(f"a motion adapter goes onto Stable Diffusion 1, {self.path} is a {name}: leave it out")
        if (kind := self.base.config("scheduler").get("prediction_type", "epsilon")) != "epsilon":
            raise InputError(
                f"a motion adapter goes onto Stable Diffusion 1, {self.path} predicts {kind!r}: leave it out"
            )
        check_adapter(self.adapter, unet, self.path)

    @property
    def path(self) -> Path:
        """Where the base is."""
        return self.base.path

    @property
    def caveat(self) -> str:
        """What of the base is assumed."""
        return self.base.caveat

    @property
    def fresh(self) -> bool:
        """Whether the motion modules are new."""
        return self.adapter.tensors is None

    def config(self, part: str) -> dict[str, Any]:
        """The base's config of that part, but for the U-Net and the schedule, which are AnimateDiff's."""
        if part == "unet":
            return self._unet()
        return dict(SCHEDULER) if part == "scheduler" else self.base.config(part)

    def tensors(self, part: str) -> Mapping[str, np.ndarray]:
        """The base's weights of that part, the U-Net's with the adapter's."""
        own = self.base.tensors(part)
        if part != "unet" or self.adapter.tensors is None:
            return own
        maps = [cast(MutableMapping[str, np.ndarray], each) for each in (self.adapter.tensors, own)]
        return collections.ChainMap(*maps)

    def tokenizer(self, text: ClipTextConfig) -> Callable[[str], np.ndarray]:
        """The base's tokenizer."""
        return self.base.tokenizer(text)

    def copy_configs(self, out: Path) -> None:
        """Writes what an AnimateDiffPipeline has beside its weights, with a MotionAdapter by itself."""
        self.base.copy_configs(out)
        for unused in ("safety_checker", "feature_extractor", "image_encoder"):
            shutil.rmtree(out / unused, ignore_errors=True)
        write_json(out / "unet" / "config.json", self._unet())
        write_json(out / "scheduler" / "scheduler_config.json", self.config("scheduler"))
        (out / "motion_adapter").mkdir(exist_ok=True)
        write_json(out / "motion_adapter" / "config.json", adapter_config(self._unet()))
        kept = read_json(self.path / INDEX, "it is model_index.json") if (self.path / INDEX).is_file() else {}
        index = {key: kept[key] for key in ("vae", "text_encoder", "tokenizer") if key in kept}
        write_json(out / INDEX, {**DEFAULT_INDEX, **index})

    def _unet(self) -> dict[str, Any]:
        image, adapter = plain(self.base.config("unet")), self.adapter
        kinds = rename_blocks(image, "2D", "Motion")
        over = {} if adapter.norm_over == "frame" else {"vidjax_norm_over": adapter.norm_over}
        return {
            "_class_name": CLASS,
            **{key: image[key] for key in SHARED if key in image},
            **kinds,
            "num_attention_heads": image.get("num_attention_heads") or image.get("attention_head_dim", 8),
            "motion_num_attention_heads": adapter.heads,
            "motion_max_seq_length": adapter.longest,
            "use_motion_mid_block": adapter.mid,
            **({} if adapter.motion_norm_over == "clip" else {NORM_OVER: adapter.motion_norm_over}),
            **over,
        }


DEFAULT_INDEX = {
    "_class_name": "AnimateDiffPipeline",
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", CLASS],
    "motion_adapter": ["diffusers", ADAPTER],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}


def adapter_config(unet: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the config.json of the MotionAdapter in a UNetMotionModel with the config `unet`."""
    ours = {key: unet[key] for key in ("vidjax_norm_over", NORM_OVER) if key in unet}
    return {
        "_class_name": ADAPTER,
        "block_out_channels": list(unet["block_out_channels"]),
        "motion_layers_per_block": unet.get("layers_per_block", 2),
        "motion_num_attention_heads": unet.get("motion_num_attention_heads", 8),
        "motion_norm_num_groups": unet.get("norm_num_groups", 32),
        "motion_max_seq_length": unet.get("motion_max_seq_length", 32),
        "use_motion_mid_block": unet.get("use_motion_mid_block", True),
        **ours,
    }


def add_buffers(
    tensors: Mapping[str, np.ndarray], unet: Mapping[str, Any], source: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors of a UNetMotionModel with its positions, as `source` has them, else computed."""
    unet = plain(unet)
    found = {}
    for module, dim in modules(
        tuple(unet["block_out_channels"]), unet["layers_per_block"], unet["use_motion_mid_block"]
    ):
        key = f"{module}.transformer_blocks.0.pos_embed.pe"
        found[key] = np.array(source[key]) if key in source else positions(unet["motion_max_seq_length"], dim)
    return {**tensors, **found}
