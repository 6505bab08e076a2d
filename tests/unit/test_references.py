"""What comments, docstrings and pages refer to exists: sections, recordings, scripts, pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CODE = [*(ROOT / "greenq").rglob("*.py"), *(ROOT / "greenq").rglob("*.lua")]
TESTS = [*(ROOT / "tests").rglob("*.py")]
PAGES = [
    *(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
]

HEADING = re.compile(r"^#+ (\d+(?:\.\d+)?)\.? ", re.MULTILINE)
WIRE = re.compile(r"wire\s+format,?\s+(?:section\s+)?([\d.]*\d)")
SOURCE = re.compile(r"\bSource: (.*?)(?:\.\s|\.$|\n\n|\Z)", re.DOTALL)
RECORDINGS = re.compile(r"the recordings? (.*)")
SCRIPT = re.compile(r"\b(\w+)\.lua\b")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def found(pattern: re.Pattern[str], files: list[Path]) -> Iterator[tuple[Path, str]]:
    """Return what the pattern's first group matches, in texts without the marks of comments."""
    for file in files:
        text = re.sub(r"^\s*(#|--) ?", "", file.read_text("utf-8"), flags=re.MULTILINE)
        for match in pattern.finditer(text):
            yield file.relative_to(ROOT), " ".join(match[1].split())


def test_sections_of_the_wire_format_exist() -> None:
    sections = set(HEADING.findall((DOCS / "protocol.md").read_text("utf-8")))

    named = list(found(WIRE, [*CODE, *TESTS]))

    assert named
    assert [(file, number) for file, number in named if number not in sections] == []


def test_each_source_names_a_section_and_recordings_that_exist() -> None:
    recordings = {file.stem for file in (ROOT / "tests/vectors/captures").glob("*.jsonl")}

    sources = list(found(SOURCE, CODE))

    assert sources
    for file, source in sources:
        assert WIRE.search(source), f"{file}: {source!r} names no section of docs/protocol.md"
        for names in RECORDINGS.findall(source):
            missing = set(re.split(r", | and ", names)) - recordings
            assert not missing, f"{file}: no recording is named {missing}"


def test_scripts_that_are_named_exist() -> None:
    scripts = {file.stem for file in (ROOT / "greenq/transport/lua").glob("*.lua")}

    # But for the script of the recipe, which is an example.
    pages = [page for page in PAGES if page.parent.name != "contributing"]
    named = list(found(SCRIPT, [*CODE, *pages]))

    assert named
    assert [(file, name) for file, name in named if name not in scripts] == []


def test_every_script_has_a_row_in_the_page_on_the_protocol() -> None:
    page = DOCS / "protocol.md"

    named = {name for _file, name in found(SCRIPT, [page])}

    assert {file.stem for file in (ROOT / "greenq/transport/lua").glob("*.lua")} <= named


def test_links_between_pages_lead_to_files() -> None:
    links = [
        (page, match[1])
        for page in PAGES
        for match in LINK.finditer(FENCE.sub("", page.read_text("utf-8")))
        if "://" not in match[1]
    ]

    assert links
    broken = [(page.name, link) for page, link in links if not (page.parent / link).exists()]
    assert broken == []


def test_every_page_is_linked_from_the_index() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    pages = {str(page.relative_to(DOCS)) for page in PAGES if page.is_relative_to(DOCS)}

    linked = {match[1] for match in LINK.finditer(index)}

    assert pages - linked - {"index.md"} == set()
