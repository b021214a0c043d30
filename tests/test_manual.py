"""The manual: its commands exist with these flags and settings, its Python runs, and its tables have what there is."""

import ast
import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import starts

from vidjax.__main__ import PROGRAMS
from vidjax.data.shapes import draw
from vidjax.data.video_writing import write_mp4
from vidjax.recipes.config import OPTIONS
from vidjax.recipes.named import recipe_files
from vidjax.weights import configs, families

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "launch" / "README.md"])
# Whose Python a test of theirs runs, or one here.
RUN = {
    "api.md",
    "extending.md",
    "foreign_networks.md",
    "diffusion.md",
    "recipes.md",
    "serving.md",
}
NAMES = {module: name for name, (module, _) in PROGRAMS.items()}
GAP = re.compile(r"\.\.\.|=[A-Z]+\b|=$|\[--")


def blocks(page: Path) -> Iterator[str]:
    """Lines of code, those that end in a backslash joined with the next; and commands within lines of text."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    plain = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)
    yield from re.findall(r"^ {4,}(\S.*)$", plain, re.MULTILINE)
    yield from (" ".join(found.split()) for found in re.findall(r"`([^`]+)`", plain))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command on a page, but for those with gaps to fill in."""
    starts = re.compile(r"(python3? |vidjax |launch/|pip install )")
    for line in blocks(page):
        if starts.match(line) and not GAP.search(line):
            words = shlex.split(line, comments=True)
            ends = [i for i, word in enumerate(words) if word in ("&&", "||")]
            yield from (words[i + 1 : j] for i, j in zip([-1, *ends], [*ends, len(words)]))


def program(words: list[str]) -> tuple[str, list[str]] | None:
    """The module of vidjax that a command starts, and its arguments."""
    if words[:2] == ["python", "-m"] and words[2].startswith("vidjax."):
        return words[2].removeprefix("vidjax."), words[3:]
    if words[0] == "vidjax" and len(words) > 1 and words[1] in PROGRAMS:
        return PROGRAMS[words[1]][0], words[2:]
    if words[0].startswith("launch/") and "--" in words:
        return "main", words[words.index("--") + 1 :]
    return None


def test_programs_take_the_manuals_commands(env):
    """Alone the name of a program is a mention of it, `vidjax train`."""
    asked = [(page, *found) for page in PAGES for words in commands(page) if (found := program(words)) and found[1]]
    assert len(asked) > 50 and {module for _, module, _ in asked} == set(NAMES)
    asked = [each for each in asked if each[2] != ["--help"]]
    text = json.dumps([[module, arguments] for _, module, arguments in asked])
    done = starts.program(str(ROOT / "tests" / "parse_commands.py"), text, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    wrong = [
        f"{page.name}: {NAMES[module]} {shlex.join(arguments)}: {says}"
        for (page, module, arguments), says in zip(asked, json.loads(done.stdout), strict=True)
        if says
    ]
    assert not wrong, "\n".join(wrong)


def test_files_and_extras_of_commands_are_there():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    for page in PAGES:
        for words in commands(page):
            if words[0].startswith("launch/"):
                assert (ROOT / words[0]).is_file(), f"{page.name}: {words[0]}"
            elif words[0] in ("python", "python3") and words[1:] and words[1].startswith(("tests/", "docs/")):
                assert (ROOT / words[1]).exists(), f"{page.name}: {words[1]}"
        for extras in re.findall(r"pip install -e '\.\[([\w,]+)\]'", page.read_text()):
            assert set(extras.split(",")) <= known, f"{page.name}: {extras}"
        for file in re.findall(r"`((?:tests|docs|configs|launch|docker)/[\w./-]+)`", page.read_text()):
            assert (ROOT / file).exists(), f"{page.name}: {file}"


def has(options: dict, path: list[str]) -> bool:
    """Whether a setting of this path may be set."""
    while path and isinstance(options, dict) and path[0] in options:
        options, path = options[path[0]], path[1:]
    return not path or (path[0] in ("groups", "frame_masks"))


def test_settings_that_pages_name_exist():
    """`section.key` and `section.key=value` in the text."""
    said = re.compile(rf"`(?:--config\.)?(?:stages\.\w+\.)?((?:{'|'.join(OPTIONS)})\.[a-z][\w.]*)(?:=[^`]*)?`")
    for page in PAGES:
        for name in said.findall(page.read_text()):
            assert has(OPTIONS, name.split(".")) or name.endswith((".py", ".md")), f"{page.name}: {name}"


def first_cells(text: str) -> set[str]:
    """The names in code in the first cells of tables."""
    return set(re.findall(r"`(\w+)[`:]", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))


def test_every_recipe_is_in_the_table():
    assert set(recipe_files()) <= first_cells((DOCS / "recipes.md").read_text())


def test_what_is_read_and_what_is_refused_are_in_the_table_of_checkpoints():
    read, refused = (DOCS / "checkpoints.md").read_text().split("Refused by name")
    assert all(f"`{name}`" in read for name in (*configs.CLASSES, *families.FAMILIES))
    assert first_cells(refused) == set(configs.NOT_YET)


def test_the_table_of_speed_is_that_of_the_measured_figures():
    table = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "against_torch" / "table.py"))
    text, figures = table["PAGE"].read_text(), json.loads(table["RESULTS"].read_text())
    assert table["replaced"](text, figures) == text
    rows = text.split(table["BEGIN"])[1].split(table["END"])[0].splitlines()[2:]
    assert len(rows) == len(table["WORK"].keys() & figures["items"].keys()) > 0


def test_python_of_every_page_is_run_by_a_test():
    assert {page.name for page in PAGES if "```python" in page.read_text()} == RUN


def code(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_how_diffusion_works(tmp_path, monkeypatch):
    """The page asserts its formulas itself."""
    write_mp4(tmp_path / "clip.mp4", draw("circle", "red", "left"), 8)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in code("diffusion.md"):
        exec(block, names)
    np.testing.assert_allclose(names["made"], names["clip"], atol=1e-5)


def test_the_recipe_of_ones_own_builds(tmp_path):
    from vidjax.recipes.build import build
    from vidjax.settings import checked

    names: dict = {}
    exec(*code("recipes.md"), names)
    assert build(checked(names["get_config"]()), "diffusion", tmp_path).train.steps == 100


def test_notebooks_are_listed_without_outputs_and_what_they_import_is_there():
    """Continuous integration runs them."""
    notebooks = sorted((DOCS / "notebooks").glob("*"))
    assert [path.name for path in notebooks] == re.findall(
        r"\]\(notebooks/(\S+)\)", (DOCS / "notebooks.md").read_text()
    )
    for path in notebooks:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
        for node in ast.walk(ast.parse("\n".join("".join(cell["source"]) for cell in cells))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("vidjax"):
                assert all(hasattr(import_module(node.module), name.name) for name in node.names)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == DOCS], ids=lambda page: page.name)
def test_every_page_has_one_title(page):
    plain = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert len(re.findall(r"^# ", plain, re.MULTILINE)) == 1
