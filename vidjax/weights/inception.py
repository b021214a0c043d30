"""Keys of pytorch-fid's and torch-fidelity's file (`*-2015-12-05-6726825d.pth`) as parameter paths of
`models.inception`: they are the same."""

from vidjax.weights.convert import Rules

RULES: Rules = []
UNUSED = r"\.num_batches_tracked$|^fc\.bias$"  # the published Inception score leaves the bias of the logits out
