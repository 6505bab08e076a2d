"""Kinds of values for settings: how each is checked, normalised and parsed from text.

The function for each kind returns a `Validator`; greenq.config.settings assigns one to every
setting. This module also decides how a wrong value is shown in a message, so that no secret
appears.
"""

from __future__ import annotations

import json
import logging
import math
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta, tzinfo
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from greenq.utils import suggest
from greenq.utils.probe import parse_address

# These names are built in; `greenq.serialization` and `greenq.compression` add others.
SERIALIZERS: Final = ["json", "msgpack", "pickle", "raw", "yaml"]
COMPRESSIONS: Final = [
    "brotli", "bzip", "bzip2", "gzip", "lzma", "xz", "zlib", "zstandard", "zstd",
]  # fmt: skip

_SHOWN_CHARS: Final = 200
_HIDDEN: Final = "********"

# The values of settings and options with these names are not shown. A certificate's data may
# include its key.
_SECRET: Final = re.compile(
    r"passw|passphrase|pwd|secret|token|credential|authoriz|api[_-]?key|private[_-]?key|signing[_-]?key|ca_data$",
    re.IGNORECASE,
)


# --- secrets -------------------------------------------------------------------------------------


def mask_url(url: str) -> str:
    """Return `url`, which can be a list of URLs, with every password replaced by asterisks.

    When in doubt, this hides too much, so a password with an unquoted "@" or "/" stays hidden.
    """
    parts = re.split(r"([;,]\s*)(?=[a-zA-Z][\w+.-]*://)", url)
    return "".join(_mask_one_url(part) for part in parts)


def _mask_one_url(url: str) -> str:
    hidden = re.sub(r"://([^:@/]*):.*@", _mask_login, url, flags=re.DOTALL)
    hidden = re.sub(r"([?&])([^=&]*)=([^&]*)", _mask_option, hidden)
    # A user name without a password may be a token, or a name and a password joined by an encoded
    # colon.
    return re.sub(r"://[^:@/?]+@", f"://{_HIDDEN}@", hidden)


def _mask_login(found: re.Match[str]) -> str:
    user = found[1]
    return f"://{_HIDDEN if '%' in user else user}:{_HIDDEN}@"


def _mask_option(found: re.Match[str]) -> str:
    sign, name, value = found.groups()
    return f"{sign}{name}={_HIDDEN if _SECRET.search(unquote(name)) else value}"


def insecure_options(url: str) -> list[str]:
    """Return the options in a server's URL that switch off certificate verification."""
    unsafe = {"ssl_cert_reqs": ("none", "optional"), "ssl_check_hostname": ("false", "0", "no")}
    return [
        f"{name}={value}"
        for name, value in parse_qsl(urlsplit(url).query)
        if value.lower() in unsafe.get(name, ())
    ]


def shown(name: str, value: object) -> object:
    """Return `value` for a message or a repr, shortened and without secrets."""
    if _SECRET.search(name):
        return _HIDDEN
    if isinstance(value, Mapping):
        return {key: shown(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [shown(name, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, str):
        masked = mask_url(value)
        return masked if len(masked) <= _SHOWN_CHARS else masked[:_SHOWN_CHARS] + "…"
    return value


# --- kinds of values -----------------------------------------------------------------------------


class Validator(NamedTuple):
    """The values that a setting accepts.

    Attributes:
        accept: returns the normalised value, or raises ValueError with a text that says what is
            accepted.
        parse: turns text from the environment into a value for `accept`; may raise ValueError.
    """

    accept: Callable[[Any], Any]
    parse: Callable[[str], Any]


def _parse_text(text: str) -> str:
    return text


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: `text` is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"must be JSON ({error})") from error


def _parse_number(text: str) -> float:
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def flag() -> Validator:
    """Accept True or False."""

    def accept(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError("must be True or False")
        return value

    def parse(text: str) -> bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.strip().lower() not in words:
            raise ValueError("must be true, false, 1 or 0")
        return words[text.strip().lower()]

    return Validator(accept, parse)


def flag_or(word: str) -> Validator:
    """Accept True, False or `word`."""
    plain = flag()

    def accept(value: object) -> bool | str:
        if value == word:
            return word
        if not isinstance(value, bool):
            raise ValueError(f"must be True, False or {word!r}")
        return value

    def parse(text: str) -> Any:
        return word if text.strip().lower() == word else plain.parse(text)

    return Validator(accept, parse)


def seconds(*, zero_ok: bool = True) -> Validator:
    """Accept a duration as a number or a `timedelta`; the normal form is seconds as a float."""
    wanted = "must be a number of seconds, " + ("0 or more" if zero_ok else "more than 0")

    def accept(value: object) -> float:
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(wanted)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero_ok):
            raise ValueError(wanted)
        return float(value)

    return Validator(accept, _parse_number)


def share() -> Validator:
    """Accept a number from 0 up to, but not including, 1."""

    def accept(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError("must be a fraction, from 0 to less than 1")
        return float(value)

    return Validator(accept, _parse_number)


def whole(least: int, most: int | None = None) -> Validator:
    """Accept a whole number from `least` to `most`."""
    bounds = f"{least} or more" if most is None else f"from {least} to {most}"

    def accept(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, {bounds}")
        if value < least or (most is not None and value > most):
            raise ValueError(f"must be a whole number, {bounds}")
        return value

    return Validator(accept, _parse_number)


def text(*, empty_ok: bool = False) -> Validator:
    """Accept text; empty text is accepted only if `empty_ok`."""

    def accept(value: object) -> str:
        if not isinstance(value, str) or not (value or empty_ok):
            raise ValueError("must be text" if empty_ok else "must be non-empty text")
        return value

    return Validator(accept, _parse_text)


def choice(*choices: str) -> Validator:
    """Accept one of `choices`."""
    return _one_of(choices)


def log_format() -> Validator:
    """Accept a format string for logging, which can contain the fields about tasks."""

    def accept(value: object) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError("must be non-empty text")
        record = logging.makeLogRecord({"task_name": "", "task_id": "", "root_id": ""})
        try:
            logging.Formatter(value).format(record)
        except (ValueError, KeyError, TypeError) as exc:
            raise ValueError(f"must be a format string for logging: {exc}") from exc
        return value

    return Validator(accept, _parse_text)


def log_level() -> Validator:
    """Accept the name of a log level, or its number, such as ``logging.WARNING``."""
    levels = logging.getLevelNamesMapping()

    def accept(value: object) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            value = logging.getLevelName(value)
        if not isinstance(value, str) or value.upper() not in levels:
            raise ValueError("must be a log level, such as WARNING or INFO")
        return value.upper()

    return Validator(accept, _parse_text)


def serializer() -> Validator:
    """Accept the name of a serializer."""
    return _one_of(SERIALIZERS)


def compression() -> Validator:
    """Accept the name of a compression method."""
    return _one_of(COMPRESSIONS)


def _one_of(choices: Sequence[str]) -> Validator:
    def accept(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError("must be one of " + ", ".join(choices))
        return value

    return Validator(accept, _parse_text)


def texts(item: Validator) -> Validator:
    """Accept a list whose items `item` accepts; the normal form is a tuple."""

    def accept(value: object) -> tuple[Any, ...]:
        # Without this check, a bare "json" would pass as a list of the names j, s, o and n.
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise ValueError("must be a list of names")
        return tuple(item.accept(each) for each in value)

    def parse(text: str) -> Any:
        if text.lstrip().startswith("["):
            return parse_json(text)
        return [part.strip() for part in text.split(",") if part.strip()]

    return Validator(accept, parse)


def content() -> Validator:
    """Accept the name of a serializer or a content type."""

    def accept(value: object) -> str:
        if isinstance(value, str) and (value in SERIALIZERS or "/" in value):
            return value
        raise ValueError(
            "must list content types or the names " + ", ".join(SERIALIZERS) + _nearest(value)
        )

    return Validator(accept, _parse_text)


def _nearest(value: object) -> str:
    near = suggest.nearest(str(value), SERIALIZERS)
    return f" (did you mean {near}?)" if near else ""


def steps() -> Validator:
    """Accept priority steps: increasing whole numbers from 0 to 9, starting with 0."""
    wanted = "must be increasing whole numbers from 0 to 9, starting with 0"

    def accept(value: object) -> tuple[int, ...]:
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise ValueError(wanted)
        steps = tuple(value)
        whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
        if not whole or steps[:1] != (0,) or steps[-1] > 9 or list(steps) != sorted(set(steps)):
            raise ValueError(wanted)
        return steps

    return Validator(accept, parse_json)


_URL = re.compile(r"(embedded|unix|(redis|rediss|valkey|valkeys)(\+[a-z]+)?)://\S*")


def url(*, also: str = "") -> Validator:
    """Accept a server URL, empty text, or `also`; None means empty text."""

    def accept(value: object) -> str:
        # None is Celery's own default, which a program may pass on to mean "not set".
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ValueError("must be a URL as text")
        if value and value != also:
            _check_url(value, also)
        return value

    return Validator(accept, _parse_text)


def _check_url(value: str, also: str) -> None:
    if re.match(r"sentinels?://|\w+\+(sentinel|cluster)://|cluster://", value):
        raise ValueError("Sentinel and Cluster are not supported yet: name one server")
    if not _URL.fullmatch(value):
        raise ValueError(
            "must be a Redis or Valkey URL such as redis://:password@host:6379/0, or empty"
            + (f", or {also}" if also else "")
        )
    address = value.partition("://")[2]
    if re.search(r"[,;]", address.partition("?")[0].rpartition("@")[2]):
        raise ValueError("names several servers, which is not supported yet: name one server")
    try:
        _ = urlsplit(value).port
    except ValueError as error:
        raise ValueError(
            f"cannot be parsed ({error}); expected a form such as redis://:password@host:6379/0, "
            "with special characters in the password percent-encoded"
        ) from error


def address() -> Validator:
    """Accept a listening address: a port, a host and a port, or a unix socket."""

    def accept(value: object) -> str:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str):
            raise ValueError("must be an address: a port, HOST:PORT or unix:PATH")
        return str(parse_address(text))

    return Validator(accept, _parse_text)


def timezone() -> Validator:
    """Accept the name of a time zone."""

    def accept(value: object) -> str:
        # Django and Celery also accept tzinfo objects from the standard library or from pytz.
        if isinstance(value, tzinfo):
            value = getattr(value, "key", None) or getattr(value, "zone", None) or str(value)
        try:
            return zoneinfo.ZoneInfo(text().accept(value)).key
        except (ValueError, zoneinfo.ZoneInfoNotFoundError, OSError):
            raise ValueError("must name a time zone, such as UTC or Europe/Berlin") from None

    return Validator(accept, _parse_text)


_KEY_BYTES: Final = 32


def signing_key() -> Validator:
    """Accept a key: bytes, text, or "@" and the path of its file; the normal form is bytes.

    Whitespace around a key in a file is stripped.
    """

    def accept(value: object) -> bytes:
        if isinstance(value, str) and value.startswith("@"):
            try:
                value = Path(value[1:]).read_bytes().strip()
            except (OSError, ValueError) as error:
                raise ValueError(f"names a key file that cannot be read: {error}") from error
        key = value.encode() if isinstance(value, str) else value
        if not isinstance(key, bytes) or len(key) < _KEY_BYTES:
            raise ValueError(
                f"must be text or bytes of at least {_KEY_BYTES} bytes, or @ and the path of a "
                "file with such a key; make one with `openssl rand -hex 32`"
            )
        return key

    return Validator(accept, _parse_text)


def optional(kind: Validator) -> Validator:
    """Accept None and everything that `kind` accepts."""

    def accept(value: object) -> Any:
        return None if value is None else kind.accept(value)

    def parse(text: str) -> Any:
        return None if text.strip().lower() in ("none", "null") else kind.parse(text)

    return Validator(accept, parse)


def or_default(kind: Validator, default: object) -> Validator:
    """Accept everything that `kind` accepts; None means `default`."""
    taken = optional(kind)

    def accept(value: object) -> Any:
        return default if value is None else kind.accept(value)

    return Validator(accept, taken.parse)


def lifetime() -> Validator:
    """Accept the lifetime of a key in whole seconds, as Redis counts it; 0 means no limit."""
    duration = seconds()

    def accept(value: object) -> float:
        lifetime_s = duration.accept(value)
        if 0 < lifetime_s < 1:
            raise ValueError("must be a number of seconds, 1 or more, or 0 for no limit")
        return float(lifetime_s)

    return Validator(accept, _parse_number)


class _NoEntries(dict[str, Any]):
    """The default of ``beat_schedule``, which refuses entries, since they would be lost."""

    def __setitem__(self, name: str, entry: object) -> NoReturn:
        raise TypeError(f"beat_schedule is not set: app.conf.beat_schedule = {{{name!r}: ...}}")


def beat_schedule() -> Validator:
    """Accept a mapping of names to mappings, whose fields a beat checks when it starts."""

    def accept(value: object) -> Mapping[str, Any]:
        if value is None:
            return _NoEntries()
        if not isinstance(value, Mapping):
            raise ValueError('must be a mapping such as {"name": {"task": ..., "schedule": ...}}')
        for name, entry in value.items():
            if not isinstance(name, str) or not isinstance(entry, Mapping):
                raise ValueError(f"entry {name!r} must be a mapping with task and schedule")
        # Do not return a copy, since code may add entries to a setting that it has set.
        return value

    return Validator(accept, parse_json)


def task_annotations() -> Validator:
    """Accept one task annotation or a list of them; the normal form is a tuple."""

    def accept(value: object) -> tuple[object, ...]:
        return tuple(map(_annotation, value if isinstance(value, (list, tuple)) else [value]))

    return Validator(accept, parse_json)


def _annotation(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _attributes(str(name), given) for name, given in value.items()}
    if isinstance(value, str) and "." in value.strip("."):
        return value
    if not callable(getattr(value, "annotate", None)):
        raise ValueError(
            f"{value!r} must be {{task name or *: attributes}}, an object with annotate(task), or "
            "the full name of its class, module included"
        )
    return value


def _attributes(task: str, given: object) -> Mapping[str, object]:
    if not isinstance(given, Mapping):
        raise ValueError(f"the annotation of {task!r} must be {{attribute: value}}")
    if "*" in task and task != "*":
        raise ValueError(f"{task!r}: must be a task's full name, or * for all tasks")
    return {str(name): value for name, value in given.items()}
