"""Keys of OpenCLIP's towers, as training runs have them beside a U-Net, and those of transformers' CLIP models."""

from collections.abc import Iterable, Mapping

from vidjax.weights.convert import Rules, rename

TRANSPOSED = -1
Names = Mapping[str, tuple[str, int | None]]  # key: another's, and whether one of three parts of it, or it TRANSPOSED
IMAGE_HEAD = 80  # features of a head of ViT-H's image tower

# To transformers' keys, once `in_proj` is parted.
LAYERS: Rules = [
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
]
TEXT: Rules = [
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    *LAYERS,
]
IMAGE: Rules = [
    (r"^class_embedding", "vision_model.embeddings.class_embedding"),
    (r"^conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^ln_post\.", "vision_model.post_layernorm."),
    (r"^proj$", "visual_projection.weight"),
    (r"^transformer\.resblocks\.", "vision_model.encoder.layers."),
    *LAYERS,
]


def part_names(keys: Iterable[str], rules: Rules) -> dict[str, tuple[str, int | None]]:
    """Finds transformers' keys of a tower, each with OpenCLIP's, which has queries, keys and values in one tensor and
    its projection transposed."""
    found: dict[str, tuple[str, int | None]] = {}
    for key in keys:
        if ".in_proj_" in key:
            for part, letter in enumerate("qkv"):
                found[rename(key.replace("in_proj_", f"{letter}_proj."), rules)] = (key, part)
        else:
            found[rename(key, rules)] = (key, TRANSPOSED if key == "proj" else None)
    return found
