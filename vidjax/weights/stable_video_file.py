"""Stable Video Diffusion in one file, in the layout of Stability's own code, read as if it were a folder of diffusers.

The file has two autoencoders: the one that latents of the picture come from, conditioner.embedders.3, of which the
encoder is the folder's, and the one of the clips, first_stage_model, of which the decoder is. The other halves, and
what is left of the text tower in the picture's OpenCLIP, are not read.
"""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vidjax.errors import InputError
from vidjax.models.clip import ClipImageConfig
from vidjax.runtime.storage import write_json
from vidjax.weights import open_clip
from vidjax.weights.convert import Rules, rename
from vidjax.weights.diffusers import rename_blocks, unet_keys
from vidjax.weights.diffusers_autoencoder import AUTOENCODER_KEYS
from vidjax.weights.folder import CONFIGS, INDEX
from vidjax.weights.open_clip import Names
from vidjax.weights.single_file import AUTOENCODER, LDM, UNET, SingleFile, autoencoder_rules, levels

ENCODER, OPEN_CLIP = "conditioner.embedders.3.encoder.", "conditioner.embedders.0.open_clip.model."
DECODER, IMAGE = f"{AUTOENCODER}decoder.", f"{OPEN_CLIP}visual."
KNOWN = re.compile(rf"{UNET}|{AUTOENCODER}|{ENCODER}|{OPEN_CLIP}".replace(".", r"\."))
HEAD = 64  # features of a head of the U-Net
FRAMES = (14, 25)  # of the first model, and of that whose name has "xt"

# After the rules for Stable Diffusion's layers, from whose keys in diffusers these differ.
UNET_KEYS: Rules = [
    (r"^label_emb\.0\.0\.", "add_embedding.linear_1."),
    (r"^label_emb\.0\.2\.", "add_embedding.linear_2."),
    (r"\.resnets\.(\d+)\.time_stack\.", r".resnets.\1.temporal_res_block."),
    (r"\.resnets\.(\d+)\.(?=norm|conv|time_emb_proj)", r".resnets.\1.spatial_res_block."),
    (r"\.attentions\.(\d+)\.time_stack\.", r".attentions.\1.temporal_transformer_blocks."),
    (r"\.time_pos_embed\.0\.", ".time_pos_embed.linear_1."),
    (r"\.time_pos_embed\.2\.", ".time_pos_embed.linear_2."),
]
DECODER_KEYS: Rules = [  # the same for an autoencoder's
    (r"\.time_stack\.in_layers\.0\.", ".temporal_res_block.norm1."),
    (r"\.time_stack\.in_layers\.2\.", ".temporal_res_block.conv1."),
    (r"\.time_stack\.out_layers\.0\.", ".temporal_res_block.norm2."),
    (r"\.time_stack\.out_layers\.3\.", ".temporal_res_block.conv2."),
    (r"\.mix_factor$", ".time_mixer.mix_factor"),
    (r"\.resnets\.(\d+)\.(?=norm|conv)", r".resnets.\1.spatial_res_block."),
    (r"\.conv_out\.time_mix_conv\.", ".time_conv_out."),
]
SCHEDULER = dict(
    _class_name="EulerDiscreteScheduler",
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    interpolation_type="linear",
    num_train_timesteps=1000,
    prediction_type="v_prediction",
    sigma_min=0.002,
    sigma_max=700.0,
    steps_offset=1,
    timestep_spacing="leading",
    timestep_type="continuous",
    use_karras_sigmas=True,
)
CLASSES = {
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "scheduler": ["diffusers", SCHEDULER["_class_name"]],
}


def is_stable_video(keys: Iterable[str]) -> bool:
    """Whether a file has a U-Net of Stable Video Diffusion: one that blends each layer with one over time."""
    return any(key.startswith(UNET) and ".time_mixer." in key for key in keys)


class StableVideoFile(SingleFile):
    """A checkpoint of Stable Video Diffusion in one safetensors file. Raises InputError for keys of anything else."""

    needs = (UNET, DECODER, ENCODER, IMAGE)
    what = "the checkpoint of Stable Video Diffusion as Stability published it"

    def __post_init__(self):
        super().__post_init__()
        if strange := [key for key in self.all if not KNOWN.match(key)]:
            raise InputError(f"{self.path}: {min(strange)} is no key of Stable Video Diffusion; get the file again")

    @property
    def caveat(self) -> str:
        """What the file does not say and is assumed."""
        return f"the file does not say for how many frames it is: by its name it is taken for that of {self._frames()}"

    def _readers(self) -> dict[str, Callable[[], dict[str, Any]]]:
        return {
            "unet": self._unet,
            "vae": self._autoencoder,
            "image_encoder": self._image,
            "feature_extractor": self._extractor,
            "scheduler": lambda: dict(SCHEDULER),
        }

    def names(self, part: str) -> Names:
        """The keys of a part in a folder, and what of the file each is."""
        return {"unet": self._unet_keys, "vae": self._vae_keys, "image_encoder": self._image_keys}[part]()

    def copy_configs(self, out: Path) -> None:
        """Writes what a folder of diffusers has beside its weights."""
        for part in CLASSES:
            (out / part).mkdir(parents=True)
            write_json(out / part / CONFIGS.get(part, "config.json"), self.config(part))
        write_json(out / INDEX, {"_class_name": "StableVideoDiffusionPipeline", **CLASSES})

    def _frames(self) -> int:
        return FRAMES["xt" in self.path.stem.lower()]

    def _unet(self) -> dict[str, Any]:
        image, numbers = super()._unet(), self._own(UNET)["label_emb.0.0.weight"][1]
        kinds = rename_blocks(image, "2D", "SpatioTemporal")
        kept = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
        return {
            "_class_name": CLASSES["unet"][1],
            **{key: image[key] for key in kept},
            **kinds,
            "num_attention_heads": [features // HEAD for features in image["block_out_channels"]],
            "addition_time_embed_dim": numbers // 3,
            "projection_class_embeddings_input_dim": numbers,
            "transformer_layers_per_block": 1,
            "num_frames": self._frames(),
        }

    def _unet_keys(self) -> dict[str, tuple[str, None]]:
        rules = [*LDM, (r"\.to_out\.0\.", ".to_out."), *unet_keys(levels(self._own(UNET))[1]), *UNET_KEYS]
        return {rename(key, rules): (UNET + key, None) for key in self._own(UNET)}

    def _autoencoder(self) -> dict[str, Any]:
        encoder, decoder = self._own(f"{ENCODER}encoder."), self._own(DECODER)
        count = 1 + max(int(key.split(".")[1]) for key in encoder if key.startswith("down."))
        return {
            "_class_name": CLASSES["vae"][1],
            "in_channels": encoder["conv_in.weight"][1],
            "out_channels": decoder["conv_out.weight"][0],
            "latent_channels": decoder["conv_in.weight"][1],
            "block_out_channels": [encoder[f"down.{level}.block.0.conv2.weight"][0] for level in range(count)],
            "layers_per_block": 1 + max(int(key.split(".")[3]) for key in encoder if key.startswith("down.0.block.")),
            "down_block_types": ["DownEncoderBlock2D"] * count,
            "scaling_factor": 0.18215,
            "force_upcast": True,
        }

    def _vae_keys(self) -> dict[str, tuple[str, None]]:
        rules = [*autoencoder_rules(len(self._autoencoder()["block_out_channels"])), *AUTOENCODER_KEYS]
        decoder = {
            rename(f"decoder.{key}", [*rules, *DECODER_KEYS]): (DECODER + key, None) for key in self._own(DECODER)
        }
        kept = [key for key in self._own(ENCODER) if key.startswith(("encoder.", "quant_conv."))]
        return {**decoder, **{rename(key, rules): (ENCODER + key, None) for key in kept}}

    def _image(self) -> dict[str, Any]:
        shapes = self._own(IMAGE)
        dim, _, patch, _ = shapes["conv1.weight"]
        return {
            "architectures": [CLASSES["image_encoder"][1]],
            "model_type": "clip_vision_model",
            "hidden_size": dim,
            "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
            "num_hidden_layers": 1
            + max(int(m[1]) for key in shapes if (m := re.match(r"transformer.*?\.(\d+)\.", key))),
            "num_attention_heads": dim // open_clip.IMAGE_HEAD,
            "hidden_act": "gelu",
            "patch_size": patch,
            "image_size": patch * math.isqrt(shapes["positional_embedding"][0] - 1),
            "projection_dim": shapes["proj"][1],
        }

    def _image_keys(self) -> Names:
        found = open_clip.part_names(self._own(IMAGE), open_clip.IMAGE)
        return {key: (IMAGE + own, how) for key, (own, how) in found.items()}

    @staticmethod
    def _extractor() -> dict[str, Any]:
        side = ClipImageConfig.size
        return {
            "feature_extractor_type": "CLIPFeatureExtractor",
            "do_resize": True,
            "do_center_crop": True,
            "do_rescale": True,
            "do_normalize": True,
            "resample": 3,
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "image_mean": list(ClipImageConfig.mean),
            "image_std": list(ClipImageConfig.std),
        }
