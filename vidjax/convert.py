"""A PyTorch file as safetensors: `python -m vidjax.convert FILE.ckpt --out FILE.safetensors`.

Its tensors are read as data, so that no code in the file can run; every other program takes safetensors alone.
"""

from pathlib import Path

from absl import flags

from vidjax import cli
from vidjax.errors import InputError

OUT = flags.DEFINE_string("out", None, "The file to write; FILE with the ending .safetensors by default.")


def main(file: str) -> None:
    """Writes the tensors of `file` in `--out`, whole or not at all."""
    import numpy as np
    from safetensors.numpy import save_file

    from vidjax.runtime.outputs import open_file
    from vidjax.runtime.storage import whole_file
    from vidjax.weights.torch_files import Tensors

    tensors = Tensors(file)
    if not tensors:
        raise InputError(f"{file} has no tensors: is it the file with the weights?")
    out = open_file(OUT.value or str(Path(file).with_suffix(".safetensors")), "--out")
    with whole_file(out) as place:
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, place, {"format": "pt"})
    print(f"{out}: {len(tensors)} tensors, {sum(each.nbytes for each in tensors.values()) / 2**30:.2f} GiB")


if __name__ == "__main__":
    cli.start(main, "FILE")
