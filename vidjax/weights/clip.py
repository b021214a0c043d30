"""Keys of transformers' CLIP models as parameter paths of `models.clip`, and back."""

from vidjax.weights.convert import Rules

TEXT: Rules = [
    (r"^text_model\.", ""),  # the models with a projection, and all before transformers 5, have it
    (r"^embeddings\.", ""),
    (r"^encoder\.", ""),
]
IMAGE: Rules = [
    (r"^vision_model\.", ""),
    (r"^embeddings\.", ""),
    (r"^encoder\.", ""),
    (r"^pre_layrnorm\.", "pre_layernorm."),  # their spelling
]
TEXT_HALF, IMAGE_HALF = r"^text_", r"^vis"  # of the keys of a CLIPModel; the rest is the temperature of its loss
BUFFERS = r"\.position_ids$"  # in files before transformers 4.31
TEXT_KEYS: Rules = [
    (r"^(token_embedding|position_embedding)\.", r"text_model.embeddings.\1."),
    (r"^layers\.", "text_model.encoder.layers."),
    (r"^final_layer_norm\.", "text_model.final_layer_norm."),
]
IMAGE_KEYS: Rules = [
    (r"^(class_embedding|patch_embedding|position_embedding)\b", r"vision_model.embeddings.\1"),
    (r"^layers\.", "vision_model.encoder.layers."),
    (r"^pre_layernorm\.", "vision_model.pre_layrnorm."),
    (r"^post_layernorm\.", "vision_model.post_layernorm."),
]
