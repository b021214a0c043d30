"""Encodes latents to disk, once: `python -m vidjax.cache --workdir W --out DIR`.

Encodes the examples that a run's diffusion stage would see, in their order, with the autoencoder that the run has
trained or its folder has, and captions with the folder's text encoder. With --config.data.latents=DIR training then
reads posterior moments in place of videos, features in place of captions, and neither decodes nor encodes anything.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

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
        batch, shares = min(BATCH.value, len(dataset)), dataset.shares
        counts = [max(round((EXAMPLES.value or len(dataset)) * share / sum(shares)), 1) for share in shares]
        count = sum(counts)

        def examples(bucket: int) -> Iterator[Mapping[str, Any]]:
            batches = itertools.islice(dataset.batches(batch, bucket=bucket), -(-counts[bucket] // batch))
            each = ({key: value[i] for key, value in b.items()} for b in map(encode, batches) for i in range(batch))
            yield from itertools.islice(each, counts[bucket])

        if len(shares) > 1:
            about["buckets"] = list(zip(counts, shares))
        in_turn = itertools.chain.from_iterable(map(examples, range(len(shares))))
        write_latents(part, watch(in_turn, "encoding", "example", count), about, **beside)
    print(f"{count} examples in {out}: train with --config.data.latents={out}")


if __name__ == "__main__":
    cli.start(main)
