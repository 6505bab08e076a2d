"""Checks of the arguments in remote control requests, which any client of the server can send."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

from greenq.protocol.limits import KEY, Rule, Whole, named
from greenq.protocol.serialize import saferepr

Item = TypeVar("Item")

COUNT = Whole(0, 1_000_000)
SIZE = Whole(1, 1_000_000)

PAGE = 1000
"""A list in a reply is at most this long unless the request asks for more."""

# The maximum number of values in one request; a worker remembers as many revoked task ids.
_MAX_TEXTS = 50_000

# Accepted numbers have fewer digits than this.
_MAX_DIGITS = 20


def texts(value: object) -> list[str]:
    """Return one value or a collection of values as texts.

    Raises:
        ValueError: there are too many values, or one is too long.
    """
    if value is None:
        return []
    many = value if isinstance(value, list | tuple | set) else [value]
    if len(many) > _MAX_TEXTS:
        raise ValueError(f"{len(many):,} values: at most {_MAX_TEXTS:,} are allowed at once")
    return [text("one of them", each) for each in many]


def text(name: str, value: object, rule: Rule = KEY) -> str:
    """Return an argument as text; a name can also be given as a number.

    Raises:
        ValueError: `rule` does not accept the value, because it is too long or the server cannot
            store it.
    """
    found = value if isinstance(value, str) else saferepr(value)
    checked(name, rule, found)
    return found


def number(name: str, value: object, rule: Rule = COUNT) -> Any:
    """Return an argument that is a whole number; command lines may send it as text.

    Raises:
        ValueError: `rule` does not accept the value.
    """
    if isinstance(value, str) and len(value) < _MAX_DIGITS:
        with suppress(ValueError):
            value = int(value)
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return checked(name, rule, value)


def checked(name: str, rule: Rule, value: Any) -> Any:
    """Return `value` if `rule` accepts it.

    Raises:
        ValueError: `rule` does not accept `value`.
    """
    wrong = rule.wrong(value)
    if wrong:
        raise ValueError(named(name, wrong))
    return value


def page_of(listed: list[Item], limit: int, offset: int) -> list[Item]:
    """Return at most `limit` items, starting at `offset`.

    Raises:
        ValueError: `limit` or `offset` is not a number, or is negative.
    """
    limit, offset = number("limit", limit), number("offset", offset)
    return listed[offset : offset + limit]
