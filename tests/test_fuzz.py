"""Ten thousand bad inputs: each is read or refused in words; none crashes, hangs, fills the memory or leaves a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from starts import ENV

ROOT = Path(__file__).parents[1]
COMMANDS = 100  # of whole programs; `python fuzz_programs.py 1000` tries more
COUNTS = {"videos": 2000, "tables": 1500, "headers": 6200, "overrides": 300}
LEFT = {
    "videos": {"number", "clip.mp4"},
    "tables": {"number", "t.csv", "videos", "videos/1.mp4", "videos/page", "videos/page/1.mp4", "videos/captions.json"},
    "headers": {"number", "own.safetensors", "a.safetensors", "m.safetensors.index.json"},
    "overrides": {"number"},
}


@pytest.mark.parametrize("kind", COUNTS)
def test_bad_inputs_are_refused(kind, tmp_path):
    """In a process of its own: a decoder that crashes takes it along. See `fuzz_inputs` for what is asked of each."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    command = [sys.executable, "-X", "faulthandler", ROOT / "tests" / "fuzz_inputs.py", kind, str(COUNTS[kind])]
    done = subprocess.run(command, cwd=inside, env=ENV, capture_output=True, text=True, timeout=600)
    number = (inside / "number").read_text() if (inside / "number").exists() else "none"
    assert done.returncode == 0, f"input {number}: {done.returncode}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr and (kind == "overrides" or not done.stderr), done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["read"] + found["refused"] == COUNTS[kind]
    assert min(found.values()) > COUNTS[kind] / 50, found  # what is always refused, or never, tries nothing
    assert {p.relative_to(inside).as_posix() for p in inside.rglob("*")} == LEFT[kind]
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if inside not in p.parents} == {"a", "a/b"}


def test_there_are_ten_thousand():
    assert sum(COUNTS.values()) == 10_000


def test_programs_answer_odd_command_lines_and_damaged_runs_in_words(tmp_path):
    """Each ends well, or with one line that begins with "error: "; see `fuzz_programs`."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    command = [sys.executable, ROOT / "tests" / "fuzz_programs.py", str(COMMANDS)]
    done = subprocess.run(command, cwd=inside, env=ENV, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    wrong = [each for of in found.values() for each in of["wrong"]]
    assert not wrong, f"{len(wrong)} of {COMMANDS}, such as {wrong[0]}"
    assert found["report"]["done"] and found["report"]["refused"] and found["sample"]["done"]
    assert {path.name for path in tmp_path.rglob("*") if inside not in path.parents} == {"a", "b"}
