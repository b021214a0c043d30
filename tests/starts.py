"""Many starts of a program for the imports of one: a process that has imported what programs import forks for each."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# A child is what `python -m` would have started: nothing has read flags, and JAX has no threads yet.
CODE = """
import json, os, runpy, sys
import vidjax.evaluation.results, vidjax.training.loop, vidjax.runtime.workdir
program, cases = sys.argv[1], json.loads(sys.argv[2])
statuses = []
for number, case in enumerate(cases):
    if not (child := os.fork()):
        break
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    sys.exit(print(json.dumps(statuses)))
for stream, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{sys.argv[3]}/{number}.{name}", os.O_CREAT | os.O_WRONLY), stream)
sys.argv = [program, *case]
runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


def start_each(
    name: str, cases: Sequence[Sequence[str]], env: Mapping[str, str], cwd: Path | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """What became of `python -m vidjax.<name>` with each list of arguments, one after the other."""
    with tempfile.TemporaryDirectory() as said:
        command = [sys.executable, "-c", CODE, f"vidjax.{name}", json.dumps(cases), said]
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts = [[Path(said, f"{i}.{end}").read_text() for end in ("out", "err")] for i in range(len(cases))]
    return [
        subprocess.CompletedProcess(case, status, *text)
        for case, status, text in zip(cases, json.loads(done.stdout.splitlines()[-1]), texts)
    ]
