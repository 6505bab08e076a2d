"""Output: values as text for people (tables, trees, ages), and as JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

from greenq.protocol.text import printable as printable
from greenq.utils import log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_BOLD, _PLAIN = "\033[1m", "\033[0m"
_UNITS = (("d", 86400), ("h", 3600), ("m", 60))


def write(line: str = "") -> None:
    """Print a line to stdout."""
    sys.stdout.write(f"{line}\n")


def complain(text: str) -> None:
    """Print an error to stderr; the error may contain text written by others."""
    sys.stderr.write("".join(f"{printable(line)}\n" for line in text.splitlines()))


def write_json(value: object) -> None:
    """Print a value as one line of JSON; parts that JSON cannot represent become their repr."""
    write(json.dumps(value, default=repr))


def write_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the terminal."""
    for line in table(headings, rows, color=bold_wanted(), width=width()):
        write(line)


def bold_wanted() -> bool:
    """Return whether headings may be bold."""
    return log.wants_color(sys.stdout)


def width() -> int | None:
    """Return the terminal's width; None if the output is not a terminal, so lines may be long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def bold(text: str) -> str:
    """Make a heading bold if possible."""
    return f"{_BOLD}{text}{_PLAIN}" if bold_wanted() else text


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    color: bool = False,
    width: int | None = None,
) -> Iterator[str]:
    """Align rows below their headings, and cut lines to `width`; yield nothing without rows."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for number, cells in enumerate((headings, *rows)):
        padded = (cell.ljust(size) for cell, size in zip(cells, widths, strict=True))
        line = "  ".join(padded).rstrip()
        if width is not None and len(line) > width:
            line = line[: width - 1] + "…"
        yield f"{_BOLD}{line}{_PLAIN}" if color and number == 0 else line


def tree(value: object) -> Iterator[str]:
    """Format a value as lines, with a key or a dash before each part, and nested parts indented."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _branch(f"{text(key)}:", item)
    elif isinstance(value, list) and value:
        for item in value:
            yield from _branch("-", item)
    elif isinstance(value, (dict, list)):
        yield "(none)"
    else:
        yield from (printable(line) for line in _scalar(value).splitlines() or [""])


def _branch(lead: str, item: object) -> Iterator[str]:
    lines = list(tree(item))
    # A list item starts on the line of its dash; a key's value is on the key's line only if the
    # value fits on that line.
    inline = (lead == "-") or (len(lines) == 1 and not (isinstance(item, (dict, list)) and item))
    if inline:
        yield f"{lead} {lines[0]}".rstrip()
        yield from (f"  {line}" for line in lines[1:])
    else:
        yield lead
        yield from (f"  {line}" for line in lines)


def text(value: object) -> str:
    """Format a value as a table cell: one line, without control characters."""
    return printable(_scalar(value))


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None else json.dumps(value, ensure_ascii=False, default=repr)


def age(seconds: object) -> str:
    """Format a duration as a number and a unit; return ``-`` if `seconds` is not a number."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return "-"
    for unit, size_s in _UNITS:
        if seconds >= size_s:
            return f"{int(seconds // size_s)}{unit}"
    return f"{max(int(seconds), 0)}s"


def number(value: object) -> str:
    """Format a count with thousands separators; return ``-`` if `value` is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-"
    return f"{value:,}"


def dot_quoted(words: str) -> str:
    """Quote text as a name or label for Graphviz."""
    escaped = words.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def part(value: object, *path: str) -> Any:
    """Return the value at `path` in nested mappings, or None."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def is_error(reply: object) -> bool:
    """Return whether a worker's reply is an error."""
    return isinstance(reply, dict) and reply.keys() == {"error"}


def all_errors(replies: Mapping[str, Any]) -> bool:
    """Return whether all workers' replies are errors."""
    return bool(replies) and all(map(is_error, replies.values()))
