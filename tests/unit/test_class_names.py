"""Each class of the package has a name of its own, so that a name read anywhere means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_class_name_stands_for_two_things() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for file in sorted((ROOT / "greenq").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                # `_Plan` and `Plan` are told apart by no reader.
                places[node.name.lstrip("_")].append(f"{file.relative_to(ROOT)}:{node.lineno}")

    assert len(places) > 400
    assert {name: lines for name, lines in places.items() if len(lines) > 1} == {}
