"""What is wrong with a recipe, a variant or an override is one line, and a recipe's own mistake is told as such."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vidjax import cli
from vidjax.__main__ import PROGRAMS
from vidjax.recipes import named

ROOT = Path(__file__).parents[1]
RECIPE = """
def get_config(variant=""):
    kinds = {"a": 1}
    if variant not in ("", "key", "attribute", "zero", "type", "value", "import"):
        raise ValueError(f"there is no variant {variant!r}: choose key")
    if variant == "key":
        return kinds["b"]
    if variant == "attribute":
        return kinds.nothing
    if variant == "zero":
        return 1 / 0
    if variant == "type":
        return 1 + "a"
    if variant == "value":
        return int("x" * 3)
    if variant == "import":
        import nothing_of_this_name
    return {"data": {"size": 8, "frames": 2}, "stages": {}}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    return tmp_path / "recipe.py"


def refused(capsys, function, *args) -> str:
    with pytest.raises(SystemExit) as end:
        function(*args)
    line = capsys.readouterr().err
    assert end.value.code == 1 and line.startswith("error: ") and line.count("\n") == 1 and "Traceback" not in line
    return line


@pytest.mark.parametrize("value", [f"{ROOT}/configs/{n}.py:nope" for n in ("lvdm", "ddpm", "vdm", "tune_a_video")])
def test_a_misspelt_variant_is_answered_with_those_that_there_are(value, capsys):
    line = refused(capsys, cli.load_recipe, value)
    assert f"--config={value}" in line and "nope" in line and len(line) < 500


def test_a_variant_is_refused_in_the_recipes_own_words(recipe, capsys):
    assert "there is no variant 'b': choose key" in refused(capsys, cli.load_recipe, f"{recipe}:b")


@pytest.mark.parametrize(
    "variant, line, says",
    [
        ("key", 7, "KeyError: 'b'"),
        ("attribute", 9, "AttributeError"),
        ("zero", 11, "ZeroDivisionError"),
        ("type", 13, "TypeError"),
        ("import", 17, "nothing_of_this_name"),
    ],
)
def test_a_recipes_mistake_is_told_with_its_line(variant, line, says, recipe, capsys):
    said = refused(capsys, cli.load_recipe, f"{recipe}:{variant}")
    assert f"{recipe} has a mistake, line {line}: " in said and says in said
    assert "config has no key" not in said


@pytest.mark.parametrize(
    "text, says",
    [("def f(:", "is not Python, line 1"), ("\0", "is not Python"), ("x = 1", "no function get_config")],
)
def test_what_is_no_recipe_is_refused(text, says, recipe, capsys):
    recipe.write_text(text)
    assert says in refused(capsys, cli.load_recipe, str(recipe))
    assert "there is no file" in refused(capsys, cli.load_recipe, str(recipe.parent))


def test_a_key_that_is_not_listed_is_answered_with_those_that_are(recipe, capsys):
    config = cli.load_recipe(str(recipe))
    assert "did you mean 'size'?" in refused(capsys, cli.check_override, config, "--config.data.sise=3")
    line = refused(capsys, cli.check_override, config, "--config.data.fps=3")
    assert "there is no config.data.fps" in line and line.endswith("what can be set of config.data: frames, size\n")
    line = refused(capsys, cli.check_override, config, "--config.train.dtype=bfloat16")
    assert "there is no config.train" in line and line.endswith("of config: data, stages\n")
    assert "is a setting, not a section" in refused(capsys, cli.check_override, config, "--config.data.size.x=3")
    for arg in ("--config.data.size=3", "-config.data.size=3", "--workdir=w", "--config=x", "config.nothing"):
        cli.check_override(config, arg)


@pytest.mark.parametrize(
    "argv, value",
    [
        (["main", "--config=a:b"], "a:b"),
        (["main", "--config", "a"], "a"),
        (["main", "--workdir=a"], None),
        (["main", "-config"], ""),
    ],
)
def test_the_recipe_is_found_on_the_command_line(argv, value):
    assert cli.recipe_of(argv) == value


def test_a_clip_that_is_left_out_is_named_once(capfd):
    logger, handler = logging.getLogger("vidjax.data.pipeline"), logging.StreamHandler()
    handler.addFilter(cli.Once())
    logger.addHandler(handler)
    try:
        for name in ("a", "b", "a", "a"):  # by several stages, for windows of several kinds
            logger.warning("clip %s is left out: %s", name, f"no frames in it {name}")
            logger.warning("another warning")
    finally:
        logger.removeHandler(handler)
    said = capfd.readouterr().err
    assert said.count("clip a is left out") == said.count("clip b is left out") == 1
    assert said.count("another warning") == 4


def test_every_program_has_a_name():
    """A program is a module that cli.start is called in."""
    starts = re.compile(r"^ +cli\.start\(", re.MULTILINE)
    files = [file for file in (ROOT / "vidjax").rglob("*.py") if starts.search(file.read_text())]
    modules = {".".join(file.relative_to(ROOT / "vidjax").with_suffix("").parts) for file in files}
    assert modules == {module for module, _ in PROGRAMS.values()}


def test_the_list_of_programs_imports_none_of_them(env):
    code = "import sys; from vidjax.__main__ import main; main(); print({'jax', 'numpy', 'absl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    *lines, imported = done.stdout.splitlines()
    assert imported == "set()" and [line.split()[0] for line in lines[1:]] == list(PROGRAMS)


def test_a_program_is_started_by_its_name(env, tmp_path):
    def start(*arguments):
        command = [sys.executable, "-m", "vidjax", *arguments]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

    for name, says in (("sampel", "did you mean 'sample'?"), ("watermark", "error: --video is missing")):
        done = start(name)
        assert done.returncode == 1 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    told = start("train", "--help").stdout
    assert all(f"\n  --{flag}: " in told for flag in ("config", "workdir", "coordinator"))


def test_a_recipe_is_found_by_name_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    by_file = cli.load_recipe(f"{ROOT}/configs/lvdm.py:sky")
    assert cli.load_recipe("lvdm:sky").to_dict() == by_file.to_dict()
    line = refused(capsys, cli.load_recipe, "lvdmm:sky")
    assert all(f" {file.stem}," in line for file in (ROOT / "configs").glob("*.py"))


def test_an_installed_package_has_its_recipes_in_itself(tmp_path, monkeypatch):
    for folder in ("configs", "vidjax/configs"):  # the first: a folder of that name which is none of vidjax's
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "lvdm.py").touch()
    monkeypatch.setattr(named, "PACKAGE", tmp_path / "vidjax")
    assert named.as_file("lvdm:sky") == f"{tmp_path}/vidjax/configs/lvdm.py:sky"
    assert named.as_file("mine.py:sky") == "mine.py:sky"
