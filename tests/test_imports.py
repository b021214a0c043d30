"""Imports run downwards only: into the same room and to lower floors, also those inside functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Lowest first. Rooms of one floor do not import each other; what is in no room is a program.
FLOORS = (
    ("errors",),
    ("settings", "runtime"),
    ("data", "diffusion"),
    ("models.kernels",),
    ("models",),
    ("weights", "profiling"),
    ("metrics", "generation", "training"),
    ("recipes",),
    ("evaluation", "serving"),
    ("cli",),
)


def modules() -> dict[str, Path]:
    paths = sorted((ROOT / "vidjax").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(tree: ast.AST) -> Iterator[str]:
    """Names that a module imports, and of `from a import b` a.b, which may be a module; what only type checkers see is
    left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        yield from imported(node)


def room(module: str) -> tuple[int, str]:
    """The floor and the room of a module."""
    found = [
        (len(name), floor, name)
        for floor, names in enumerate(FLOORS)
        for name in names
        if f"{module}.".startswith(f"vidjax.{name}.")
    ]
    return max(found)[1:] if found else (len(FLOORS), module)


def upward() -> Iterator[str]:
    known = modules()
    for module, path in known.items():
        floor, name = room(module)
        for target in imported(ast.parse(path.read_text())):
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target in ("", "vidjax"):
                continue
            there, other = room(target)
            if there > floor or (there == floor and other != name):
                yield f"{module} imports {target}"


def test_imports_run_downwards():
    assert not (found := sorted(upward())), "\n".join(found)


def test_the_rooms_are_there():
    known = modules()
    assert [name for names in FLOORS for name in names if f"vidjax.{name}" not in known] == []
