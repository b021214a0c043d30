"""Parses commands of vidjax's programs as these do, and runs none: its argument is JSON, [[module, [argument, ...]],
...], and on stdout it tells what each says is wrong with its command, "" if nothing.

A process that has imported what the programs import forks for each command: flags are defined once in a process.
"""

import contextlib
import importlib
import io
import json
import os
import sys

import vidjax.evaluation.results  # noqa: F401
from vidjax import cli
from vidjax.errors import InputError


def parse(module: str, arguments: list[str]) -> str:
    """What the program says of its command line, before it does anything."""
    sys.argv = [module, *arguments]  # where settings of the recipe are looked for
    program, said = importlib.import_module(f"vidjax.{module}"), io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            rest = cli.parse(sys.argv)[1:]
            if module == "serve" and rest[:1] == ["keys"]:
                return "" if len(rest) == 2 + (rest[1] != "list") else f"keys takes no {rest[1:]}"
            for check in ("CONFIG", "check_flags"):
                getattr(program, check, lambda: None)()
            if len(rest) != (module == "convert"):
                return f"arguments that are no flags: {rest}"
        except (SystemExit, InputError) as error:
            return said.getvalue() or str(error)
    return ""


def main() -> None:
    """Answers on stdout."""
    answers = []
    for module, arguments in json.loads(sys.argv[1]):
        reading, writing = os.pipe()
        if not os.fork():
            os.write(writing, parse(module, arguments).encode()[:60000])
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            answers.append(answer.read())
        os.wait()
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
