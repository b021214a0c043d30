"""Public definitions say what they do."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "vidjax"
SHARE = 0.99


def public(tree: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, bool]]:
    """(name, whether it is documented) of each public class, function, method and property."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            own = f"{name}.{node.name}"
            yield own, ast.get_docstring(node) is not None
            if isinstance(node, ast.ClassDef):
                yield from public(node, own)


def test_nearly_all_public_definitions_are_documented():
    found: dict[str, bool] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found |= public(ast.parse(path.read_text()), path.relative_to(PACKAGE).with_suffix("").as_posix())
    bare = [name for name, documented in found.items() if not documented]
    assert 1 - len(bare) / len(found) >= SHARE, f"{len(bare)} of {len(found)} have no docstring:\n" + "\n".join(bare)
