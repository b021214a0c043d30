"""Keys of diffusers' AutoencoderKL as parameter paths of `models.autoencoder`, and back."""

DIFFUSERS_AUTOENCODER = [
    (r"^(encoder|decoder)\.(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.", r"\1.\2.\3.resnet_\4."),
    (r"^(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r"\1.\2.\3.\4sample."),
    (r"^(encoder|decoder)\.mid_block\.resnets\.(\d+)\.", r"\1.mid.resnet_\2."),
    (r"^(encoder|decoder)\.mid_block\.attentions\.0\.", r"\1.mid.attention.layer."),
    (r"\.attention\.layer\.group_norm\.", ".attention.layer.norm."),
    (r"\.attention\.layer\.(query|key|value)\.", lambda m: f".attention.layer.to_{m[1][0]}."),  # before diffusers 0.15
    (r"\.attention\.layer\.(to_out\.0|proj_attn)\.", ".attention.layer.to_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
]

AUTOENCODER_KEYS = [
    (r"\.(down|up)\.(\d+)\.resnet_(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
    (r"\.mid\.resnet_(\d+)\.", r".mid_block.resnets.\1."),
    (r"\.mid\.attention\.layer\.", ".mid_block.attentions.0."),
    (r"\.attentions\.0\.norm\.", ".attentions.0.group_norm."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.norm_out\.", ".conv_norm_out."),
]
