"""Keys of diffusers' AutoencoderKL as parameter paths of `models.autoencoder`, for `convert.load`."""

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
