"""Keys of pytorch-i3d's files (`rgb_imagenet.pt`, `i3d_pretrained_400.pt`) as parameter paths of `models.i3d`."""

from vidjax.weights.convert import Rules

RULES: Rules = [
    (r"^logits\.conv3d\.", "logits."),
    (r"\.conv3d\.", ".conv."),
]
BUFFERS = r"\.num_batches_tracked$"
