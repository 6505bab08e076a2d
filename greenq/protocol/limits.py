"""The limits on numbers, texts and whole JSON texts from outside, all in one place.

Messages, events, control requests and results may come from anyone who is allowed to write to the
server. Each of their fields has a rule below. Code that reads a field checks the rule, and refuses
or skips values that violate it. docs/hostile-input.md shows the table to users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, TypeGuard

import msgspec

from greenq.errors import DecodeError


class Rule(Protocol):
    """A rule for the values of a field."""

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value, as text to follow a field's name; "" if valid."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers from `least` to `most`."""

    least: int
    most: int

    @property
    def meta(self) -> msgspec.Meta:
        """Return the same rule for a typed decoder, which supports bounds of up to 64 bits."""
        return msgspec.Meta(ge=self.least, le=self.most)

    def takes(self, value: object) -> TypeGuard[int]:
        """Return whether a value is valid."""
        return not self.wrong(value)

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value."""
        if type(value) is int and self.least <= value <= self.most:
            return ""
        return f"is {_shown(value, (int,))}, not a whole number from {self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class Number:
    """Finite numbers from `least` to `most`; if `above` is true, `least` is excluded."""

    least: float
    most: float
    above: bool = False

    @property
    def meta(self) -> msgspec.Meta:
        """Return the same rule for a typed decoder."""
        return msgspec.Meta(ge=self.least, le=self.most)

    def takes(self, value: object) -> TypeGuard[float]:
        """Return whether a value is valid."""
        return not self.wrong(value)

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value."""
        # The comparison also refuses NaN.
        is_number = type(value) in (int, float) and self.least <= value <= self.most  # type: ignore[operator]
        if is_number and not (self.above and value == self.least):
            return ""
        start = "above" if self.above else "from"
        shown = _shown(value, (int, float))
        return f"is {shown}, not a number {start} {self.least:g} to {self.most:g}"


@dataclass(frozen=True, slots=True)
class Text:
    """Text of limited length; if `sendable` is true, only text that the server can store."""

    most: int
    sendable: bool = False

    @property
    def meta(self) -> msgspec.Meta:
        """Return the same rule for a typed decoder, which never reads lone surrogates."""
        return msgspec.Meta(max_length=self.most)

    def takes(self, value: object) -> TypeGuard[str]:
        """Return whether a value is valid."""
        return not self.wrong(value)

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value."""
        if type(value) is not str:
            return f"is {_shown(value)}, not text"
        if len(value) > self.most:
            return f"is a text of {len(value):,} characters, more than {self.most:,}"
        if self.sendable and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                # JSON can encode half of a surrogate pair.
                return "is not valid Unicode"
        return ""


@dataclass(frozen=True, slots=True)
class Optional:
    """None, or a value that another rule accepts."""

    rule: Rule

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value."""
        return "" if value is None else self.rule.wrong(value)


@dataclass(frozen=True, slots=True)
class OneOf:
    """All values of the given types."""

    types: tuple[type, ...]

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value."""
        if type(value) in self.types:
            return ""
        return f"is {_shown(value)}, not {' or '.join(each.__name__ for each in self.types)}"


@dataclass(frozen=True, slots=True)
class ListOf:
    """Lists of limited length whose items another rule accepts."""

    rule: Rule
    most: int
    least: int = 0

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value."""
        # A pickle may contain a tuple.
        if not isinstance(value, list | tuple):
            return f"is {_shown(value)}, not a list"
        if not self.least <= len(value) <= self.most:
            return f"is a list of {len(value):,} items, not of {self.least} to {self.most:,}"
        for index, item in enumerate(value):
            reason = self.rule.wrong(item)
            if reason:
                return f"[{index}] {reason}"
        return ""


class _Moment:
    """A time: ISO 8601 text, which is parsed later, or a datetime that a serializer has created."""

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value."""
        return "" if type(value) is datetime else MOMENT_TEXT.wrong(value)


# --- the table ------------------------------------------------------------------------------------

COUNT: Final = Whole(0, 1 << 53)
CLOCK: Final = Whole(0, (1 << 62) - 1)
"""A number small enough that code can calculate with it."""

MOST_SECONDS: Final = 1_000_000_000
"""Thirty years, which is practically no limit; no timer is set for longer."""

SECONDS: Final = Number(0, MOST_SECONDS)
INTERVAL: Final = Number(0, MOST_SECONDS, above=True)
TIMESTAMP: Final = Number(-1e11, 1e11)
"""Unix time."""

FIGURE: Final = Number(-(1 << 62), 1 << 62)
"""A number that is only displayed."""

NAME: Final = Text(1000)
"""Names of nodes, types, methods, and anything else that people name."""

KEY: Final = Text(1000, sendable=True)
"""Text that becomes part of a key or goes back to the server: ids, tasks, groups, queues."""

KEPT_NAME: Final = Text(255, sendable=True)
"""Names of nodes, queues and elections, kept for a long time in memory or on the server."""

DESCRIPTION: Final = Text(100_000)
"""A descriptive text, such as the arguments' repr."""

ANY_TEXT: Final = Text(1 << 29)
TIMELIMIT: Final = ListOf(Optional(SECONDS), most=2, least=2)
MOMENT_TEXT: Final = Text(100)
MOMENT: Final = _Moment()
FLAG: Final = OneOf((bool,))

# Headers of a message, and the fields of a body of protocol 1.
MESSAGE: Final[Mapping[str, Rule]] = {
    "task": KEY,
    "id": KEY,
    "lang": Optional(NAME),
    "shadow": Optional(NAME),
    "eta": Optional(MOMENT),
    "expires": Optional(MOMENT),
    "group": Optional(KEY),
    "group_index": Optional(COUNT),
    "retries": Optional(COUNT),
    "timelimit": Optional(TIMELIMIT),
    "root_id": Optional(NAME),
    "parent_id": Optional(NAME),
    "argsrepr": Optional(DESCRIPTION),
    "kwargsrepr": Optional(DESCRIPTION),
    "origin": Optional(NAME),
    "ignore_result": Optional(FLAG),
    "replaced_task_nesting": Optional(COUNT),
    "stamped_headers": Optional(ListOf(NAME, most=1000)),
    "stamps": Optional(OneOf((dict,))),
    "compression": Optional(NAME),
    "redelivered": Optional(FLAG),
}

# The fields that every event must have. Other fields are used only if they satisfy their rules.
EVENT: Final[Mapping[str, Rule]] = {
    "type": NAME,
    "clock": CLOCK,
    "hostname": NAME,
    "timestamp": TIMESTAMP,
}

# The fields of a control request's body.
REQUEST: Final[Mapping[str, Rule]] = {
    "method": NAME,
    "arguments": Optional(OneOf((dict,))),
    "destination": Optional(ListOf(NAME, most=100_000)),
    "pattern": Optional(NAME),
    "matcher": Optional(NAME),
    "ticket": Optional(NAME),
}

# The headers of a control request and of a reply.
CONTROL_HEADERS: Final[Mapping[str, Rule]] = {
    "clock": CLOCK,
    "expires": TIMESTAMP,
    "ticket": NAME,
}

RESULT: Final[Mapping[str, Rule]] = {
    "status": NAME,
    "task_id": NAME,
    "traceback": Optional(ANY_TEXT),
    "children": Optional(OneOf((list, tuple))),
    "date_done": Optional(MOMENT_TEXT),
    "group_id": Optional(NAME),
    "parent_id": Optional(NAME),
    "retries": Optional(COUNT),
    "worker": Optional(NAME),
    "queue": Optional(NAME),
}


def refusal(fields: Mapping[Any, Any], rules: Mapping[str, Rule]) -> str:
    """Return which of the fields that are present is wrong, and why; "" if all are valid."""
    for name, rule in rules.items():
        if name in fields:
            reason = rule.wrong(fields[name])
            if reason:
                return named(name, reason)
    return ""


def require(name: str, rule: Rule, value: object, raw: bytes = b"") -> None:
    """Refuse an invalid value.

    Raises:
        DecodeError: the value is invalid; the error names the field.
    """
    reason = rule.wrong(value)
    if reason:
        raise DecodeError(named(name, reason), raw)


def named(name: str, reason: str) -> str:
    """Return a field's name, followed by what is wrong with the field."""
    return f"{name}{reason}" if reason.startswith("[") else f"{name} {reason}"


def _shown(value: object, numbers: tuple[type, ...] = ()) -> str:
    """Describe a value briefly: as a number if its type is one of `numbers`, else by its type."""
    if type(value) not in numbers:
        return type(value).__name__
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


# --- JSON as a whole ------------------------------------------------------------------------------

# An empty list is two characters and a comma in JSON, but takes 80 bytes of memory. So parsing can
# make text grow thirtyfold, and meanwhile no other task in the process can run. Therefore the
# number of values is also limited, to one per this many bytes of the maximum size. For 8 MiB, the
# limit is 131,072 values, which take at most about 20 MB and 0.1 s. Texts of at most `DENSE_BYTES`
# may have any number of values.
_BYTES_EACH = 64

DENSE_BYTES: Final = 10_000
"""A text of at most this many bytes never has too many values."""

BROADCAST_BYTES: Final = 16 << 20
"""The size limit for messages published to all: events, batches of events and control requests."""

# The maximum size of a message without its body: mostly headers.
_AROUND_BYTES = 1 << 20

_SIGNS = b',[{"'
_OTHERS = bytes(set(range(256)) - set(_SIGNS))


def most_raw(max_body_bytes: int) -> int:
    """Return the maximum size of a message, given the maximum size of its body before base64."""
    return _AROUND_BYTES + (max_body_bytes + 2) // 3 * 4


def most_items(max_bytes: int) -> int:
    """Return how many values a JSON text of at most `max_bytes` may have."""
    return max(DENSE_BYTES, max_bytes // _BYTES_EACH)


MOST_ITEMS: Final = most_items(BROADCAST_BYTES)
"""The maximum number of values in a message that is published to all workers."""


def check_json(data: bytes, max_bytes: int, what: str) -> None:
    """Refuse a JSON text that would be too expensive to parse, without parsing it.

    Raises:
        DecodeError: the text is too large, or has too many values for its size.
    """
    if len(data) > max_bytes:
        raise DecodeError(f"{what} of {len(data)} bytes exceeds {max_bytes} bytes", data)
    if has_more_items(data, most_items(max_bytes)):
        raise DecodeError(
            f"{what} of {len(data)} bytes has more than {most_items(max_bytes)} values", data
        )


def is_readable(data: bytes, max_bytes: int) -> bool:
    """Return whether a JSON text passes `check_json`."""
    return len(data) <= max_bytes and not has_more_items(data, most_items(max_bytes))


def has_more_items(data: bytes, most: int) -> bool:
    """Return whether a JSON text has more than `most` commas and opening brackets outside strings.

    This is fast for texts with fewer bytes than `most`, that is, for nearly all messages.
    """
    if len(data) <= most or _count(data) <= most:
        return False
    # Strings may contain these characters, so remove the strings. Once escapes are gone, everything
    # between two quotes belongs to a string, and two adjacent quotes can be removed as a pair.
    signs = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
    return _count(b"".join(signs.replace(b'""', b"").split(b'"')[::2])) > most


def _count(data: bytes) -> int:
    # On dense data, this is twenty times as fast as `bytes.count`.
    return len(data) - len(data.translate(None, b",[{"))
