"""What a number, a text or a whole JSON text from elsewhere may be: the one place that says so.

Messages, events, control requests and results come from whoever may write to the server. Each of
their fields has a rule below; who reads a field asks the rule and refuses, or passes over, what it
does not take. docs/hostile-input.md shows the table to users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, TypeGuard

import msgspec

from greenq.errors import DecodeError


class Rule(Protocol):
    """What the values of a field may be."""

    def wrong(self, value: object) -> str:
        """Say what is wrong with a value, as it follows the field's name; "" if nothing is."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers from `least` to `most`."""

    least: int
    most: int

    @property
    def meta(self) -> msgspec.Meta:
        """The same for a typed decoder; its bounds are 64 bits wide."""
        return msgspec.Meta(ge=self.least, le=self.most)

    def takes(self, value: object) -> TypeGuard[int]:
        """Tell whether a value is right."""
        return not self.wrong(value)

    def wrong(self, value: object) -> str:
        """Say what is wrong with a value."""
        if type(value) is int and self.least <= value <= self.most:
            return ""
        return f"is {_shown(value, (int,))}, not a whole number from {self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class Number:
    """Finite numbers from `least` to `most`; with `above`, greater than `least`."""

    least: float
    most: float
    above: bool = False

    @property
    def meta(self) -> msgspec.Meta:
        """The same for a typed decoder."""
        return msgspec.Meta(ge=self.least, le=self.most)

    def takes(self, value: object) -> TypeGuard[float]:
        """Tell whether a value is right."""
        return not self.wrong(value)

    def wrong(self, value: object) -> str:
        """Say what is wrong with a value."""
        # Written so that NaN is refused too.
        is_number = type(value) in (int, float) and self.least <= value <= self.most  # type: ignore[operator]
        if is_number and not (self.above and value == self.least):
            return ""
        start = "above" if self.above else "from"
        shown = _shown(value, (int, float))
        return f"is {shown}, not a number {start} {self.least:g} to {self.most:g}"


@dataclass(frozen=True, slots=True)
class Text:
    """Texts of at most so many characters; `sendable`, those that the server can hold."""

    most: int
    sendable: bool = False

    @property
    def meta(self) -> msgspec.Meta:
        """The same for a typed decoder, which reads no half characters."""
        return msgspec.Meta(max_length=self.most)

    def takes(self, value: object) -> TypeGuard[str]:
        """Tell whether a value is right."""
        return not self.wrong(value)

    def wrong(self, value: object) -> str:
        """Say what is wrong with a value."""
        if type(value) is not str:
            return f"is {_shown(value)}, not text"
        if len(value) > self.most:
            return f"is a text of {len(value):,} characters, more than {self.most:,}"
        if self.sendable and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                # JSON can spell half a surrogate pair.
                return "is not valid Unicode"
        return ""


@dataclass(frozen=True, slots=True)
class Optional:
    """None, or what another rule takes."""

    rule: Rule

    def wrong(self, value: object) -> str:
        """Say what is wrong with a value."""
        return "" if value is None else self.rule.wrong(value)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Values of some types, whatever they are."""

    types: tuple[type, ...]

    def wrong(self, value: object) -> str:
        """Say what is wrong with a value."""
        if type(value) in self.types:
            return ""
        return f"is {_shown(value)}, not {' or '.join(each.__name__ for each in self.types)}"


@dataclass(frozen=True, slots=True)
class ListOf:
    """Lists of what another rule takes, of so many items."""

    rule: Rule
    most: int
    least: int = 0

    def wrong(self, value: object) -> str:
        """Say what is wrong with a value."""
        # A tuple is what a pickle may hold.
        if not isinstance(value, list | tuple):
            return f"is {_shown(value)}, not a list"
        if not self.least <= len(value) <= self.most:
            return f"is a list of {len(value):,}, not of {self.least} to {self.most:,}"
        for index, item in enumerate(value):
            reason = self.rule.wrong(item)
            if reason:
                return f"[{index}] {reason}"
        return ""


class _Moment:
    """A moment: ISO 8601 text, which is read later, or what a serializer has made of one."""

    def wrong(self, value: object) -> str:
        """Say what is wrong with a value."""
        return "" if type(value) is datetime else MOMENT_TEXT.wrong(value)


# --- the table ------------------------------------------------------------------------------------

COUNT: Final = Whole(0, 1 << 53)
CLOCK: Final = Whole(0, (1 << 62) - 1)
"""What comes later must be able to reckon with it."""

MOST_SECONDS: Final = 1_000_000_000
"""Thirty years: as good as no limit. No timer is set to more."""

SECONDS: Final = Number(0, MOST_SECONDS)
INTERVAL: Final = Number(0, MOST_SECONDS, above=True)
TIMESTAMP: Final = Number(-1e11, 1e11)
"""Unix time."""

FIGURE: Final = Number(-(1 << 62), 1 << 62)
"""A number that is only shown."""

NAME: Final = Text(1000)
"""Names of nodes, types, methods, and whatever else people have named."""

KEY: Final = Text(1000, sendable=True)
"""What becomes part of a key or goes back to the server: ids, tasks, groups, queues."""

DESCRIPTION: Final = Text(100_000)
"""A text for people, such as the arguments' repr."""

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

# What every event must have. Of other fields the reader believes only what their rules take.
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
    """Say which of the fields that are there is wrong, and why; "" if all are right."""
    for name, rule in rules.items():
        if name in fields:
            reason = rule.wrong(fields[name])
            if reason:
                return named(name, reason)
    return ""


def require(name: str, rule: Rule, value: object, raw: bytes = b"") -> None:
    """Refuse a value that is wrong.

    Raises:
        DecodeError: it is; the error names the field.
    """
    reason = rule.wrong(value)
    if reason:
        raise DecodeError(named(name, reason), raw)


def named(name: str, reason: str) -> str:
    """Join a field's name and what is wrong with it."""
    return f"{name}{reason}" if reason.startswith("[") else f"{name} {reason}"


def _shown(value: object, numbers: tuple[type, ...] = ()) -> str:
    """Describe a value in a few words: a number of a type that is asked for, else its type."""
    if type(value) not in numbers:
        return type(value).__name__
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


# --- JSON as a whole ------------------------------------------------------------------------------

# An empty list of two characters and a comma takes 80 bytes: text can grow by thirty when it is
# read, and while that lasts nothing else runs in the process. So the number of values is bounded
# too: one for so many bytes of the greatest size. Of 8 MiB that are 131,072 values, which take at
# most some 20 MB and 0.1 s. Smaller texts may be as dense as they like.
_BYTES_EACH = 64

DENSE_BYTES: Final = 10_000
"""A text of no more bytes has never too many values."""

BROADCAST_BYTES: Final = 16 << 20
"""What is published to all may have so many: an event or a batch of them, a request, a reply."""

# What is around a body in a message, its headers above all.
_AROUND_BYTES = 1 << 20

_SIGNS = b',[{"'
_OTHERS = bytes(set(range(256)) - set(_SIGNS))


def most_raw(max_body_bytes: int) -> int:
    """Return how large a message may be whose body, in base64, is of so many bytes at most."""
    return _AROUND_BYTES + (max_body_bytes + 2) // 3 * 4


def most_items(max_bytes: int) -> int:
    """Return how many values a JSON text of so many bytes at most may have."""
    return max(DENSE_BYTES, max_bytes // _BYTES_EACH)


MOST_ITEMS: Final = most_items(BROADCAST_BYTES)
"""How many values there may be in what is published to all."""


def check_json(data: bytes, max_bytes: int, what: str) -> None:
    """Refuse a JSON text that would take too much to read; it is not read for that.

    Raises:
        DecodeError: it is too large, or has too many values for its size.
    """
    if len(data) > max_bytes:
        raise DecodeError(f"{what} of {len(data)} bytes is larger than {max_bytes}", data)
    if has_more_items(data, most_items(max_bytes)):
        raise DecodeError(
            f"{what} of {len(data)} bytes has more than {most_items(max_bytes)} values", data
        )


def is_readable(data: bytes, max_bytes: int) -> bool:
    """Tell whether `check_json` has nothing against a JSON text."""
    return len(data) <= max_bytes and not has_more_items(data, most_items(max_bytes))


def has_more_items(data: bytes, most: int) -> bool:
    """Tell whether a JSON text has more commas and opening brackets outside of texts than `most`.

    Quick where there are not so many bytes, as in nearly all messages.
    """
    if len(data) <= most or _count(data) <= most:
        return False
    # Texts may hold all these signs: leave them out. Without escapes and all else, what is between
    # two quotes is a text's; two quotes side by side change nothing on what is between others.
    signs = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
    return _count(b"".join(signs.replace(b'""', b"").split(b'"')[::2])) > most


def _count(data: bytes) -> int:
    # Of dense data twenty times as fast as `bytes.count`.
    return len(data) - len(data.translate(None, b",[{"))
