"""Starts every program and ends it with one line and exit status 1 if its input is bad; flags that programs share."""

import contextlib
import difflib
import errno
import functools
import gc
import io
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from vidjax.errors import InputError, printable
from vidjax.recipes.named import as_file, recipe_files
from vidjax.runtime import cluster
from vidjax.runtime.memory import keep_freed_memory

# A full disk, a file or a user over a limit, a folder that may only be read.
UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

# A name that is too long, goes through a file, or in circles.
MISNAMED = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)


def start(program: Callable[..., None], *names: str) -> None:
    """Parse the flags and run `program` with the arguments that are no flags, called `names`; an InputError becomes one
    line on stderr and exit status 1."""
    keep_freed_memory()
    gc.set_threshold(20_000, 20, 20)  # tracing makes many small things, few in circles: 6% of a small run went to look
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(Once())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # --help lists the program's own and these
    app.run(functools.partial(run, program, names=names), flags_parser=parse)


def run(program: Callable[..., None], argv: list[str], names: Sequence[str] = ()) -> None:
    """Run `program` after `parse`."""
    given = argv[1:]
    if len(given) > len(names):
        fail(f"argument {given[len(names)]!r} is not a flag; flags are written --name=value")
    if len(given) < len(names):
        fail(f"{names[len(given)]} is missing")
    try:
        program(*given)
    except InputError as error:
        fail(str(error))
    except OSError as error:
        if error.errno in MISNAMED and error.filename is not None:
            fail(f"{error.filename} can't be opened ({error.strerror}): name another file or folder")
        if error.errno not in UNWRITABLE:
            raise
        fail(f"{error.filename or 'a file'} can't be written ({error.strerror}): make room, and start again")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(128 + signal.SIGINT)


class Once:
    """A log filter that passes a warning of ours about one thing, its first argument, once: stages read the same
    clips."""

    def __init__(self):
        self._said: set[tuple[str, Any]] = set()

    def __call__(self, record: Any) -> bool:
        about = (record.msg, str(record.args[0])) if isinstance(record.args, tuple) and record.args else None
        if about is None or not record.name.startswith("vidjax"):
            return True
        fresh, self._said = about not in self._said, self._said | {about}
        return fresh


def parse(argv: list[str]) -> list[str]:
    """Parses flags with absl, after it has checked the recipe and its overrides with errors for users."""
    if (value := recipe_of(argv)) is not None:
        config = load_recipe(value)
        if any(arg.lstrip("-").startswith(("config.", "noconfig.")) for arg in argv[1:]):
            complete = complete_recipe(value, config)
            for arg in argv[1:]:
                check_override(complete, arg)
    try:
        return flags.FLAGS(argv)
    except (flags.Error, InputError, ValueError, AttributeError, KeyError, TypeError) as error:
        fail(str(error))


def recipe_of(argv: list[str]) -> str | None:
    """Returns the value of the last --config, or None."""
    found = None
    for arg, after in zip(argv[1:], [*argv[2:], ""]):
        name, equals, value = arg.partition("=")
        if name in ("--config", "-config"):
            found = value if equals else after
    return found


def load_recipe(value: str) -> Any:
    """Returns the config of a recipe's name or file, either with :VARIANT. Ends the program if there is no such recipe,
    if it refuses the variant, or if it has a mistake, with the line of it."""
    name, *variant = value.split(":", 1)
    path = as_file(name)
    if not os.path.isfile(path):
        fail(
            f"--config={value}: there is no file {path} and no recipe of that name; recipes are "
            f"{', '.join(recipe_files())}, with a variant such as lvdm:sky, and files of your own"
        )
    try:
        names = runpy.run_path(path, run_name="vidjax_recipe")
        if not callable(names.get("get_config")):
            fail(f"--config={value}: {path} is no recipe: it has no function get_config")
        return names["get_config"](*variant)
    except SyntaxError as error:
        fail(f"--config={value}: {path} is not Python, line {error.lineno}: {error.msg}")
    except InputError as error:
        fail(f"--config={value}: {error}")
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        refused = isinstance(error, ValueError) and frames[-1].filename == path
        if refused:  # it says itself what is wrong
            fail(f"--config={value}: {error}")
        where = f", line {lines[-1]}" if lines else ""
        fail(f"--config={value}: the recipe {path} has a mistake{where}: {type(error).__name__}: {error}")


class RecipeParser(flags.ArgumentParser):
    """Reads a recipe by the parser `read`, keeps it as it is, and returns it with every option that flags may set."""

    def __init__(self, read: Any):
        super().__init__()
        self._read, self.recipe = read, {}

    def parse(self, argument: Any) -> Any:
        """Returns the recipe that `argument` names, as flags see it."""
        from vidjax.recipes.config import complete
        from vidjax.settings import checked

        self.recipe = checked(self._read.parse(as_file(argument)))
        return complete(self.recipe)


def define_recipe_flag(values: flags.FlagValues = flags.FLAGS) -> Callable[[], dict[str, Any]]:
    """Defines --config, and with it --config.SECTION.KEY for every option of its sections; returns what reads the
    recipe with the values that flags have set, as plain data. Raises InputError if there is none."""
    from ml_collections import config_flags

    about = "A recipe, lvdm or the file configs/lvdm.py, and its variant: lvdm:sky or configs/lvdm.py:sky."
    config_flags.DEFINE_config_file("config", None, about, flag_values=values)
    flag = values["config"]
    flag.parser = parser = RecipeParser(flag.parser)

    def read() -> dict[str, Any]:
        from vidjax.recipes.config import overridden
        from vidjax.settings import checked

        if flag.value is None:
            raise InputError("--config is missing: name a recipe, such as --config=lvdm")
        return checked(overridden(parser.recipe, config_flags.get_override_values(flag)))

    return read


def complete_recipe(value: str, config: Any) -> Any:
    """The recipe with every option that flags may set. Ends the program if it is none."""
    from vidjax.recipes.config import complete
    from vidjax.settings import checked

    try:
        return complete(checked(config))
    except InputError as error:
        fail(f"--config={value}: {error}")


def check_override(config: Any, arg: str) -> None:
    """Ends the program if `arg` is --config.SECTION.KEY=VALUE of a key that does not exist."""
    name = arg.partition("=")[0].lstrip("-")
    if not arg.startswith("-") or not name.startswith("config."):
        return
    if "[" in name:
        fail(f"--{name}: a part of a value cannot be set; set the whole of --{name.partition('[')[0]}")
    section, path = config, "config"
    for key in name.split(".")[1:]:
        if not hasattr(section, "keys"):
            fail(f"--{name}: {path} is a setting, not a section; leave out what follows its name")
        if key not in section:
            known = sorted(section.keys())
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            fail(f"--{name}: there is no {path}.{key}; {hint}what can be set of {path}: {', '.join(known)}")
        section, path = section[key], f"{path}.{key}"


def define_cluster_flags() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Defines --distributed and --coordinator with its company; returns what a program then opens around its work: it
    joins the cluster that the flags name, if they do."""
    distributed = flags.DEFINE_bool("distributed", False, "First join the other processes of a cluster.")
    coordinator = flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of the first process; default: as the cluster says (TPU, GKE, SLURM, Open MPI)."
    )
    processes = flags.DEFINE_integer("processes", None, "How many there are, with --coordinator.", lower_bound=1)
    process_id = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
    timeout = flags.DEFINE_integer(
        "timeout",
        None,
        "Seconds in which the processes must have met; default: 60 with --coordinator, 600 in a cluster.",
        lower_bound=1,
    )

    def join() -> contextlib.AbstractContextManager[None]:
        if not (distributed.value or coordinator.value):
            return contextlib.nullcontext()
        seconds = timeout.value or (60 if coordinator.value else 600)
        return cluster.join(coordinator.value, processes.value, process_id.value, seconds)

    return join


def fail(message: str) -> NoReturn:
    """Prints one line on stderr and exits with 1; line ends and control characters in `message` become spaces."""
    sys.stderr.write(f"error: {printable(message)}\n")  # at once: a library's thread may be writing, too
    sys.stderr.flush()
    sys.exit(1)
