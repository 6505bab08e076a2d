"""Types of command line options and arguments: each function parses one kind of text.

argparse calls these functions and shows the messages of their errors.
"""

from __future__ import annotations

import argparse
import math
from datetime import timedelta
from pathlib import Path
from typing import Final

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_DURATIONS: Final = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_UNITS_KB: Final = {"K": 1, "M": 1024, "G": 1024 * 1024}


def names(text: str) -> tuple[str, ...]:
    """Read queue names: ``a,b``."""
    found = _parts(text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"no queue named in {text!r}: give names, as in -Q mail,web"
        )
    return found


def modules(text: str) -> tuple[str, ...]:
    """Read module names: ``a,b``."""
    found = _parts(text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"no module named in {text!r}: give names, as in -I proj.tasks"
        )
    return found


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return found


def duration(text: str) -> timedelta:
    """Read an age: ``30s``, ``10m``, ``2h`` or ``7d``."""
    unit = _DURATIONS.get(text[-1:])
    if unit is None or not text[:-1].isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an age, such as 30s, 10m, 2h or 7d")
    try:
        return int(text[:-1]) * unit
    except (OverflowError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is too long ago") from None


def lifetime(text: str) -> float:
    """Read a duration: ``30s``, ``10m``, ``2h``, ``7d``, or a number of seconds."""
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        found = duration(text).total_seconds()
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration above 0")
    return found


def memory(text: str) -> int:
    """Read an amount of memory in KiB: ``512M``, ``2G``, or a number of KiB."""
    number, unit = text, 1
    if text[-1:].upper() in _UNITS_KB:
        number, unit = text[:-1], _UNITS_KB[text[-1].upper()]
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an amount of memory, such as 512M, 2G or a number of KiB"
        )
    return int(number) * unit


def limits(text: str) -> tuple[int, int]:
    """Read the limits of a pool: ``MAX,MIN`` or ``MAX``."""
    parts = text.split(",")
    if len(parts) == 1:
        parts.append("1")
    try:
        most, least = (int(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MAX,MIN, such as 500,10") from None
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: MAX comes first, and MIN is between 1 and MAX")
    return most, least


def level(text: str) -> str:
    """Read a log level, in upper or lower case."""
    if text.upper() not in LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a log level; use {', '.join(LEVELS)}")
    return text.upper()


def server(text: str) -> str:
    """Read a server's URL; ``@FILE`` reads it from a file, which hides it from ``ps``.

    The URL is checked later, as the value of its setting.
    """
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text("utf-8").strip()
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise argparse.ArgumentTypeError(f"{text[1:]!r} cannot be read: {reason}") from None


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
