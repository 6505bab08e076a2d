"""The map in docs/internals.md names every module of the package, with its duty, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "greenq"


def mapped(text: str) -> dict[str, str]:
    """Return the duty that the map gives to each file and each folder, by path."""
    found: dict[str, str] = {}
    folder = ""
    for line in text.partition("\n## Every module\n")[2].split("\n"):
        if heading := re.fullmatch(r"### `([\w/]+/)`", line):
            folder = heading[1]
        elif row := re.fullmatch(r"\| `(\w+\.py)` \| (.*) \|", line):
            found[folder + row[1]] = row[2]
        elif line and line[0] not in "|#" and folder:
            found[folder] = line
    return found


def test_map_names_every_module_and_every_folder() -> None:
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    inner = {f"{path.parent}/" for path in files if path.name == "__init__.py"} - {"./"}
    modules = {str(path) for path in files if path.name != "__init__.py"} | {"__init__.py"}
    duties = mapped((ROOT / "docs" / "internals.md").read_text(encoding="utf-8"))
    assert duties.keys() == modules | inner
    assert {name for name, duty in duties.items() if len(duty) < 8} == set()


def test_map_is_read_by_folders() -> None:
    text = (
        "x\n## Every module\n\n| `a.py` | does a |\n\n### `b/`\n\nHolds c.\n\n| `c.py` | does c |\n"
    )
    assert mapped(text) == {"a.py": "does a", "b/": "Holds c.", "b/c.py": "does c"}


def test_contributing_names_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("\n## Where things are\n")[2].partition("\n## ")[0]
    first_cells = "\n".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    named = set(re.findall(r"`(?:greenq/)?(\w+)/`", first_cells))
    assert named == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
