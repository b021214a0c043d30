"""One self-contained page about a run, from whatever is there: `python -m vidjax.report --workdir W`."""

from absl import flags

from vidjax import cli
from vidjax.errors import InputError
from vidjax.runtime.storage import parse_path

WORKDIR = flags.DEFINE_string("workdir", None, "The run that the page is about.")


def main() -> None:
    """Writes the page of --workdir, and prints where it is."""
    from vidjax.evaluation.page import write_report

    if not WORKDIR.value:
        raise InputError("--workdir is missing: name the folder of a run that vidjax.main has trained")
    print(write_report(parse_path(WORKDIR.value)))


if __name__ == "__main__":
    cli.start(main)
