"""How every program starts and fails: flags in, one line and exit status 1 out if the input is bad."""

import errno
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from vidjax.errors import InputError, printable

# A full disk, a file or a user over a limit, a folder that may only be read.
UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def start(program: Callable[[], None]) -> None:
    """Parse the flags and run `program`; an InputError becomes one line on stderr and exit status 1."""

    def checked(argv: list[str]) -> None:
        logging.use_absl_handler()
        logging.set_verbosity(logging.WARNING)
        if len(argv) > 1:
            fail(f"argument {argv[1]!r} is not a flag; flags are written --name=value")
        try:
            program()
        except InputError as error:
            fail(str(error))
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            fail(f"{error.filename or 'a file'} can't be written ({error.strerror}): make room, and start again")
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(128 + signal.SIGINT)

    app.run(checked, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with the config library's exceptions turned into lines for people."""
    for arg in argv[1:]:
        name, _, value = arg.partition("=")
        path = value.split(":")[0]
        if name in ("--config", "-config") and not Path(path).is_file():
            fail(
                f"--config={value}: there is no file {path}; recipes are files such as configs/lvdm.py, "
                "with a variant configs/lvdm.py:sky"
            )
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # how the config library says that an override names no key
        text = " ".join(str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'").split())
        key = re.search(r"'(\w+)'", text)
        where = next((a.split("=")[0] for a in argv if key and a.startswith("--config.") and key[1] in a), "--config")
        near = re.search(r'Did you mean "(\w+)"', text)
        hint = (
            f"; did you mean {near[1]!r}?"
            if near
            else "; only keys that the recipe file lists can be set on the command line"
        )
        fail(f"{where}: the config has no key {key[1] if key else text!r}{hint}")
    except TypeError:
        named = " ".join(arg for arg in argv if arg.startswith(("--config.", "-config.")))
        fail(f"{named}: a setting is named as if it were a section; leave out what follows its name")
    except (flags.Error, InputError, ValueError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """One line on stderr, exit status 1; also where what it quotes of a file has lines, or commands to a terminal."""
    sys.stderr.write(f"error: {printable(message)}\n")  # at once: a library's thread may be writing, too
    sys.stderr.flush()
    sys.exit(1)
