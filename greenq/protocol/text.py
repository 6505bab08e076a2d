"""Makes text from outside safe for log lines and terminals, since anyone may write to a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# The indent of all lines of a record except the first, so that they do not look like new records.
_INDENT: Final = "    "

# The maximum length of a record, because text from outside must not fill a disk.
_MOST_CHARS: Final = 100_000


def printable(text: str) -> str:
    """Escape characters that move the cursor, reverse the writing direction or break a line."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def record(text: str) -> str:
    """Turn text into one log record: lines stay separate but are indented, and tabs are kept."""
    if len(text) > _MOST_CHARS:
        text = cut(text, _MOST_CHARS)
    if text.isprintable():
        return text
    lines = ("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
    return f"\n{_INDENT}".join(lines)


def cut(text: str, most: int) -> str:
    """Cut off everything after `most` characters, and append how many were cut off."""
    left_out = len(text) - most
    return text if left_out <= 0 else f"{text[:most]}… ({left_out:,} characters more)"


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return the first few names as text, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
