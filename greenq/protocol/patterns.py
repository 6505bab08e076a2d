"""Patterns for node names in remote control requests: anyone allowed to publish can send them.

A pattern must not be able to keep a worker busy. The time to match a glob is limited by the lengths
of the pattern and the name, and a regular expression is refused unless its time is also limited.
"""

from __future__ import annotations

import re
from typing import Final

# Longer patterns are refused.
MOST_CHARS: Final = 200

# The maximum number of ways to match a regular expression against a name. Each repeat may end
# anywhere in the name, and each bar offers two choices; the number of ways is the product of all
# these numbers.
_MOST_WAYS: Final = 100_000

_REPEATS: Final = frozenset("*+?{")


def glob_matches(name: str, pattern: str) -> bool:
    """Return whether a name matches a glob: ``*``, ``?``, ``[seq]`` and ``[!seq]``.

    If the part after a star does not match, the last star takes one more character; earlier stars
    never need to do so. So the number of steps is at most the product of both lengths.
    """
    parts = _parts(pattern)
    at, place = 0, 0
    star, kept = -1, 0
    while place < len(name):
        part = parts[at] if at < len(parts) else None
        if part == "*":
            star, kept = at, place
            at += 1
        elif part is not None and _fits(name[place], part):
            at, place = at + 1, place + 1
        elif star >= 0:
            kept += 1
            at, place = star + 1, kept
        else:
            return False
    return all(part == "*" for part in parts[at:])


def _parts(pattern: str) -> list[str]:
    """Split a glob into stars, question marks, sets with their brackets, and characters.

    A literal character is doubled, so that it cannot be mistaken for a star or a question mark.
    """
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        # A closing bracket right after the opening one, or after its "!", is a member of the set.
        first = at + 2 if pattern[at + 1 : at + 2] == "!" else at + 1
        end = pattern.find("]", first + 1) if char == "[" else -1
        if end > 0:
            parts.append(pattern[at : end + 1])
            at = end + 1
        else:
            parts.append(char if char in "*?" else char * 2)
            at += 1
    return parts


def _fits(char: str, part: str) -> bool:
    if part == "?":
        return True
    if len(part) == 2:
        return part[0] == char
    is_other = part[1] == "!"
    members = part[2 if is_other else 1 : -1]
    at, is_in = 0, False
    while at < len(members):
        if members[at + 1 : at + 2] == "-" and at + 2 < len(members):
            is_in = is_in or members[at] <= char <= members[at + 2]
            at += 3
        else:
            is_in = is_in or members[at] == char
            at += 1
    return is_in is not is_other


def regex_matches(name: str, pattern: str) -> bool:
    """Return whether the beginning of a name matches a regular expression.

    Raises:
        ValueError: the pattern is not a regular expression, or matching it could take long.
    """
    why = _too_much(name, pattern)
    if why:
        raise ValueError(f"{why}: {pattern[:MOST_CHARS]!r}")
    try:
        return re.match(pattern, name) is not None
    except (re.error, OverflowError, RecursionError) as exc:
        raise ValueError(f"not a regular expression: {exc}: {pattern!r}") from exc


def _too_much(name: str, pattern: str) -> str:
    """Return why an expression is refused; "" if it is accepted.

    An accepted expression repeats no group, so repeats are not nested. It also has so few repeats
    and bars that the number of ways to match stays below the limit.
    """
    if len(pattern) > MOST_CHARS:
        return f"the pattern is longer than {MOST_CHARS} characters"
    # A character after a backslash or in a set is not a repeat.
    plain = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    if re.search(r"\[\^?\]?[^]]*(\[|--|&&|~~|\|\|)", plain):
        # Refuse these characters: Python warns about them on stderr, and their meaning may change.
        return "a set must not contain [, --, &&, ~~ or ||"
    plain = re.sub(r"\[\^?\]?[^]]*\]", "x", plain)
    plain = plain.replace("(?:", "(")
    if "(?" in plain:
        return "of the groups that begin with (?, only (?: is allowed"
    # A question mark that makes a repeat lazy is not another repeat.
    plain = re.sub(r"([*+?}])[?+]", r"\1", plain)
    if re.search(r"\)[*+?{]", plain):
        return "a group must not be repeated"
    repeats = sum(char in _REPEATS for char in plain)
    ways = (len(name) + 1) ** repeats * 2 ** plain.count("|")
    if ways > _MOST_WAYS:
        return f"too many repeats and alternatives for a name of {len(name)} characters"
    return ""
