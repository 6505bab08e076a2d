"""No module of the package imports, even through others, itself: neither for types alone nor later.

`lint-imports` compares layers; this looks at each module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "greenq"


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules that a module names in imports of any kind, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in known)
        elif isinstance(node, ast.ImportFrom):
            # ruff sees to it that all imports are absolute (TID252).
            assert node.level == 0
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                name = inner if inner in known else str(node.module)
                if name in known:
                    yield name


def graph(root: Path) -> dict[str, set[str]]:
    """Return what each module of a package imports from it."""
    known = {name_of(path, root): path for path in sorted(root.rglob("*.py"))}
    return {
        name: {*imported(ast.parse(path.read_text(encoding="utf-8")), known)}
        for name, path in known.items()
    }


def circle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return a circle, from one module back to itself; empty if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]
    return []


def test_no_module_is_part_of_a_circle() -> None:
    imports = graph(PACKAGE)
    assert imports["greenq.app"] >= {"greenq.task", "greenq.beat.periodic"}
    assert circle(imports) == []


@pytest.mark.parametrize(
    "back",
    [
        "import made.first\n",
        "from made import first\n",
        "if TYPE_CHECKING:\n    from made.first import Name\n",
        "def later():\n    from made.first import Name\n",
    ],
)
def test_circle_of_any_kind_is_seen(tmp_path: Path, back: str) -> None:
    root = tmp_path / "made"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "first.py").write_text("from made import second\n")
    (root / "second.py").write_text(back)
    assert set(circle(graph(root))) == {"made.first", "made.second"}
