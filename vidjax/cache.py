"""Encodes latents to disk, once: `python -m vidjax.cache --workdir W --out DIR`.

Encodes the examples that a run's diffusion stage would see, in their order, with the autoencoder that the run has
trained or its folder has, and captions with the folder's text encoder. With --config.data.latents=DIR training then
reads posterior moments in place of videos, features in place of captions, and neither decodes nor encodes anything.
"""

import itertools

from absl import flags

from vidjax import cli
from vidjax.errors import InputError
from vidjax.runtime.outputs import open_new_folder
from vidjax.runtime.storage import parse_path, whole_folder

WORKDIR = flags.DEFINE_string("workdir", None, "A run whose autoencoder is trained (vidjax.main --stage=autoencoder).")
STAGE = flags.DEFINE_string("stage", None, "The stage to encode for; default: the run's last.")
EXAMPLES = flags.DEFINE_integer(
    "examples", None, "How many; default: one of every clip. More hold more windows of each.", lower_bound=1
)
BATCH = flags.DEFINE_integer("batch", 8, "Examples at a time.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "A new folder.")


def main() -> None:
    """Encodes the examples of --workdir into --out."""
    for name, flag in (("workdir", WORKDIR), ("out", OUT)):
        if not flag.value:
            raise InputError(f"--{name} is missing")
    workdir, out = parse_path(WORKDIR.value), open_new_folder(OUT.value)
    from vidjax.data.latents import write_latents
    from vidjax.recipes.run import Run
    from vidjax.runtime.progress import watch

    with whole_folder(out) as part:
        dataset, encode, about, beside = Run(workdir).encoding(STAGE.value)
        count = EXAMPLES.value or len(dataset)
        batch = min(BATCH.value, len(dataset))
        batches = (encode(batch) for batch in itertools.islice(dataset.batches(batch), -(-count // batch)))
        examples = ({key: value[i] for key, value in b.items()} for b in batches for i in range(len(b["index"])))
        shown = watch(itertools.islice(examples, count), "encoding", "example", count)
        write_latents(part, shown, about, **beside)
    print(f"{count} examples in {out}: train with --config.data.latents={out}")


if __name__ == "__main__":
    cli.start(main)
