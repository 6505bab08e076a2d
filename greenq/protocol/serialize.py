"""Values as text: serializers, JSON with Celery's extended types, and readable descriptions."""

from __future__ import annotations

import base64
import gc
import importlib
import io
import json
import pickle
from datetime import date, datetime, time
from decimal import Decimal
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import msgspec

from greenq.errors import CELERY_NAMES, ContentDisallowed, DecodeError, EncodeError
from greenq.protocol.limits import MOST_ITEMS, has_more_items

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Every Python since 3.4 can read this protocol, which Celery also writes.
PICKLE_PROTOCOL = 4
_YAML_MAX_DEPTH = 500

DATA_TYPE = "application/data"
TEXT_TYPE = "text/plain"


class Serialized(NamedTuple):
    """A value as bytes, with the two strings that determine how to read them."""

    data: bytes
    content_type: str
    content_encoding: str


class UnpicklableException(Exception):
    """The object that Celery pickles in place of an exception that cannot be pickled.

    Its ``args`` are the class's module, the class's name, the arguments and the exception's text.
    """


# --- JSON ----------------------------------------------------------------------------------------


def json_dumps(value: object) -> str:
    """Return `value` as JSON, with Celery's tags for dates, times, decimals, UUIDs and bytes.

    An object with a ``__json__()`` method is replaced by that method's result.

    Raises:
        EncodeError: the value, or something in it, has no JSON form.
    """
    try:
        return _encode_json(value)
    # __json__ and the conversion of lazy text run users' code, which may raise any exception.
    except Exception as exc:
        raise EncodeError(f"cannot be encoded as JSON: {_why(exc)}") from exc


def json_loads(text: str | bytes) -> Any:
    """Read JSON, turning Celery's tags back into Python values.

    Raises:
        DecodeError: the text is not UTF-8, not JSON or nested too deeply, or has an unknown or
            broken tag.
    """
    try:
        decode = _decode_json if len(text) < _LARGE else _decode_large
        return decode(text if isinstance(text, str) else text.decode())
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as exc:
        raise DecodeError(f"not readable as JSON: {_why(exc)}", _as_bytes(text)) from exc
    except RecursionError as exc:
        raise DecodeError("not readable as JSON: nested too deeply", _as_bytes(text)) from exc


def _tag(kind: str, value: object) -> dict[str, object]:
    return {"__type__": kind, "__value__": value}


def _default(value: Any) -> object:
    """Replace a value that JSON does not support; datetime comes first, since it is also a date."""
    reduce = getattr(value, "__json__", None)
    if reduce is not None:
        return reduce()
    if isinstance(value, datetime):
        return _tag("datetime", value.isoformat())
    if isinstance(value, date):
        return _tag("date", value.isoformat())
    if isinstance(value, time):
        return _tag("time", value.isoformat())
    if isinstance(value, Decimal):
        return _tag("decimal", str(value))
    if isinstance(value, UUID):
        return _tag("uuid", {"hex": value.hex})
    if isinstance(value, bytes):
        return _tag_bytes(value)
    if _is_lazy_text(value):
        return str(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _tag_bytes(value: bytes) -> dict[str, object]:
    try:
        return _tag("bytes", value.decode())
    except UnicodeDecodeError:
        return _tag("base64", base64.b64encode(value).decode())


def _is_lazy_text(value: object) -> bool:
    """Recognise Django's lazily translated text without importing Django."""
    return any(
        cls.__name__ == "Promise" and cls.__module__ == "django.utils.functional"
        for cls in type(value).__mro__
    )


_DECODERS: dict[str, Callable[[Any], object]] = {
    "datetime": datetime.fromisoformat,
    # A date may be followed by a time of day, which is ignored.
    "date": lambda text: datetime.fromisoformat(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda fields: UUID(hex=fields["hex"]),
    "bytes": str.encode,
    "base64": base64.b64decode,
}


def _untag(obj: dict[str, Any]) -> object:
    if len(obj) == 2 and "__type__" in obj and "__value__" in obj:
        decoder = _DECODERS.get(obj["__type__"])
        if decoder is None:
            raise ValueError(f"unknown __type__ {obj['__type__']!r}")
        return decoder(obj["__value__"])
    return obj


def _json_encoder() -> Callable[[object], str]:
    """Return `json.JSONEncoder(default=_default).encode`, or a faster function if Python has one.

    `JSONEncoder.encode` builds a new C encoder for every value, which takes longer than encoding a
    small value.
    """
    checking = json.JSONEncoder(default=_default).encode
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return checking
    escape = json.encoder.encode_basestring_ascii
    fast = make(None, _default, escape, None, ": ", ", ", False, False, True)

    def encode(value: object) -> str:
        try:
            return "".join(fast(value, 0))
        except RecursionError:
            # The fast encoder does not record which containers it is inside. The slow one does, and
            # so distinguishes cycles from deep nesting.
            return checking(value)

    return encode


_encode_json = _json_encoder()
# The hook costs 0.06 µs per object, or 5 % of the time to read an envelope, which is too little to
# justify a second decoder.
_decode_json = json.JSONDecoder(object_hook=_untag).decode

# A text of at least this many characters may have so many values that reading them keeps other
# tasks waiting. Reading 130,000 values takes up to 70 ms, or 140 ms if the garbage collector runs
# meanwhile on a large heap.
_LARGE = 64 << 10

# If a text contains one of these, `msgspec` refuses it or reads it differently from `_decode_json`.
# For the same number of values, `msgspec` takes 5 to 30 ms.
_UNUSUAL = ("__type__", "\\u", "NaN", "Infinity")


def _decode_large(text: str) -> Any:
    """Read JSON with the garbage collector paused, since none of the new objects is garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        if any(each in text for each in _UNUSUAL):
            return _decode_json(text)
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as exc:
            if "out of range" not in str(exc):
                raise
            return _decode_json(text)
    finally:
        if was_on:
            gc.enable()


# --- the other formats ---------------------------------------------------------------------------


def _optional(module: str, extra: str) -> Any:
    """Import an optional package; this is cheap once the package is loaded."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise ImportError(f"{module} is not installed: pip install greenq[{extra}]") from exc


def _dump_json(value: object) -> bytes:
    return _encode_json(value).encode()


def _dump_pickle(value: object) -> bytes:
    return pickle.dumps(value, PICKLE_PROTOCOL)


def _dump_yaml(value: object) -> bytes:
    # Do not use the C dumper, since it folds long lines in other places than Celery's dumper does.
    text: str = _optional("yaml", "yaml").safe_dump(_plain(value))
    return text.encode()


def _plain(value: Any) -> Any:
    """Use the result of ``__json__()`` in place of any object, such as a signature, that has it."""
    kind = value.__class__
    if kind is dict:
        return {key: _plain(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind(map(_plain, value))
    as_json = getattr(value, "__json__", None)
    return value if as_json is None else _plain(as_json())


def _dump_msgpack(value: object) -> bytes:
    packed: bytes = _optional("msgpack", "msgpack").packb(_plain(value), use_bin_type=True)
    return packed


# A mapping from Celery's names to greenq's classes.
_TWINS: dict[tuple[str, str], type[BaseException]] = {
    **{name: cls for cls, name in CELERY_NAMES.items()},
    ("celery.utils.serialization", "UnpickleableExceptionWrapper"): UnpicklableException,
}


class _Unpickler(pickle.Unpickler):
    """Unpickles Celery's own exceptions as greenq's, so that Celery need not be installed."""

    def find_class(self, module: str, name: str) -> Any:
        return _TWINS.get((module, name)) or super().find_class(module, name)


def _load_pickle(data: bytes) -> Any:
    return _Unpickler(io.BytesIO(data)).load()


def _load_yaml(data: bytes) -> Any:
    yaml = _optional("yaml", "yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = data.decode()
    # The C loader recurses without checking the stack, so deep nesting would crash the process.
    # Therefore find the depth first, by iterating over the events, which does not recurse.
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _YAML_MAX_DEPTH:
                raise RecursionError
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and _is_merge(event):
            # Nested merges of aliases copy their pairs, so a few lines could fill the memory.
            raise ValueError("merge keys (<<) are not supported")
    return yaml.load(text, Loader=loader)


def _is_merge(event: Any) -> bool:
    return bool(
        (event.implicit[0] and event.value == "<<") or event.tag == "tag:yaml.org,2002:merge"
    )


def _load_msgpack(data: bytes) -> Any:
    return _optional("msgpack", "msgpack").unpackb(data, raw=False, strict_map_key=False)


class _Format(NamedTuple):
    content_type: str
    content_encoding: str
    dump: Callable[[object], bytes]
    load: Callable[[bytes], Any]


_FORMATS = {
    "json": _Format("application/json", "utf-8", _dump_json, json_loads),
    "pickle": _Format("application/x-python-serialize", "binary", _dump_pickle, _load_pickle),
    "yaml": _Format("application/x-yaml", "utf-8", _dump_yaml, _load_yaml),
    "msgpack": _Format("application/x-msgpack", "binary", _dump_msgpack, _load_msgpack),
}
_LOADERS = {form.content_type: form.load for form in _FORMATS.values()}
_CONTENT_TYPES = {
    **{name: form.content_type for name, form in _FORMATS.items()},
    "raw": DATA_TYPE,
}
SERIALIZERS = tuple(_CONTENT_TYPES)
_BUILT_IN = frozenset({*_LOADERS, DATA_TYPE, TEXT_TYPE})


def register(
    name: str,
    encoder: Callable[[Any], bytes | str],
    decoder: Callable[[bytes], Any],
    content_type: str,
    content_encoding: str = "utf-8",
) -> None:
    """Add a serializer, or replace one that was added before.

    Args:
        encoder: turns a value into bytes, or into text, which is encoded with `content_encoding`.
        decoder: turns these bytes back into a value.

    Raises:
        ValueError: the name or the content type belongs to a built-in serializer.
    """
    known = _CONTENT_TYPES.get(name)
    if name in SERIALIZERS or (known != content_type and content_type in _BUILT_IN):
        raise ValueError(f"serializer {name} ({content_type}): built-in ones cannot be replaced")

    def dump(value: object) -> bytes:
        data = encoder(value)
        return data.encode(content_encoding) if isinstance(data, str) else data

    _FORMATS[name] = _Format(content_type, content_encoding, dump, decoder)
    _LOADERS[content_type] = decoder
    _CONTENT_TYPES[name] = content_type


def content_type_of(serializer: str) -> str:
    """Return the content type of a serializer.

    Raises:
        ValueError: no serializer has that name.
    """
    try:
        return _CONTENT_TYPES[serializer]
    except KeyError:
        raise ValueError(_unknown(serializer)) from None


def dumps(value: object, serializer: str) -> Serialized:
    """Serialize `value` with ``json``, ``pickle``, ``yaml``, ``msgpack``, ``raw`` or an added one.

    Raises:
        EncodeError: the value cannot be represented, or the serializer is unknown or not installed.
    """
    form = _FORMATS.get(serializer)
    if form is None:
        return _dump_raw(value, serializer)
    try:
        data = form.dump(value)
    # Serializers call methods of the values, which may raise any exception.
    except Exception as exc:
        raise EncodeError(f"cannot be serialized as {serializer}: {_why(exc)}") from exc
    return Serialized(data, form.content_type, form.content_encoding)


def loads(
    data: bytes,
    content_type: str,
    content_encoding: str,
    accept: frozenset[str],
    most_items: int = MOST_ITEMS,
) -> Any:
    """Read a value of an accepted content type; JSON may have at most `most_items` values.

    Raises:
        ContentDisallowed: the content type is not in `accept`.
        DecodeError: the bytes do not match their type, have too many values, or need a package that
            is not installed.
    """
    if content_type not in accept:
        raise ContentDisallowed(content_type, sorted(accept))
    loader = _LOADERS.get(content_type)
    if loader is None:
        return _load_raw(data, content_encoding)
    if loader is json_loads and has_more_items(data, most_items):
        raise DecodeError(f"{len(data)} bytes of JSON have more than {most_items} values", data)
    try:
        return loader(data)
    except DecodeError:
        raise
    # Unpickling runs whatever code the bytes name, and that code may raise any exception.
    except Exception as exc:
        raise DecodeError(f"not readable as {content_type}: {_why(exc)}", data) from exc


def accepted(names: Iterable[str]) -> frozenset[str]:
    """Return the content types to accept, given as serializer names and content types.

    ``application/data`` is always among them; its bytes are passed on unchanged.

    Raises:
        ValueError: a name is neither a serializer nor a content type.
    """
    types = {DATA_TYPE}
    for name in names:
        if name in _LOADERS or name in (DATA_TYPE, TEXT_TYPE):
            types.add(name)
        else:
            types.add(content_type_of(name))
    return frozenset(types)


def _dump_raw(value: object, serializer: str) -> Serialized:
    if serializer != "raw":
        raise EncodeError(_unknown(serializer))
    if isinstance(value, bytes):
        return Serialized(value, DATA_TYPE, "binary")
    if not isinstance(value, str):
        raise EncodeError(f"the raw serializer takes bytes or text, not {type(value).__name__}")
    try:
        return Serialized(value.encode(), DATA_TYPE, "utf-8")
    except UnicodeEncodeError as exc:
        raise EncodeError(f"text is not valid Unicode: {exc}") from exc


def _load_raw(data: bytes, content_encoding: str) -> bytes | str:
    if content_encoding.lower() in ("binary", "ascii-8bit"):
        return data
    try:
        return data.decode(content_encoding)
    except (LookupError, ValueError) as exc:
        raise DecodeError(f"not text in {content_encoding!r}: {exc}", data) from exc


def _unknown(serializer: str) -> str:
    return f"unknown serializer {serializer!r}; known: {', '.join(_CONTENT_TYPES)}"


def _why(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    try:
        return str(exc) or type(exc).__name__
    # Converting an exception from user code to text may itself raise.
    except Exception:
        return type(exc).__name__


def _as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


# --- readable texts -------------------------------------------------------------------------------


def saferepr(value: object, max_chars: int = 1024, max_levels: int = 3) -> str:
    """Describe `value` in about `max_chars` characters; never raises.

    Shape: like ``repr``, but text is only quoted, not escaped; bytes that are not UTF-8 are shown
        in hex; containers nested deeper than `max_levels` and anything beyond `max_chars` become
        three dots.
    """
    if value is None:
        # None is the most common return value.
        return "None"
    pieces: list[str] = []
    try:
        if max_levels > 0 and _is_plain(value):
            # For plain values, `repr` (in C) gives the same result unless characters are escaped or
            # omitted.
            text = repr(value)
            if len(text) < max_chars and "\\" not in text and '"' not in text:
                return text
        _describe(value, pieces, max_chars, max_levels)
    # Containers of users' own classes may raise any exception when accessed.
    except Exception as exc:
        return _unrepresentable(value, exc)
    return "".join(pieces)


_PLAIN = frozenset({bool, float, int, str, NoneType})


def _is_plain(value: Any) -> bool:
    """Return whether a value is a tuple, list or dict that contains only the simplest values."""
    cls = type(value)
    if cls is dict:
        return _PLAIN.issuperset(map(type, value)) and _PLAIN.issuperset(map(type, value.values()))
    return (cls is tuple or cls is list) and _PLAIN.issuperset(map(type, value))


def _describe(value: Any, pieces: list[str], left: int, levels: int) -> int:
    """Append the description of `value`; return how many characters are left."""
    cls = type(value)
    if cls is str or cls is bytes or isinstance(value, (str, bytes)):
        piece = _quote(value, left)
    elif cls is int or cls is bool or cls is float:
        piece = str(value)
    elif isinstance(value, (tuple, list, dict)) or (value and isinstance(value, (set, frozenset))):
        return _describe_container(value, pieces, left, levels)
    else:
        piece = _cut(_repr(value), left)
    pieces.append(piece)
    return left - len(piece)


def _describe_container(value: Any, pieces: list[str], left: int, levels: int) -> int:
    start, end = _brackets(value)
    if levels <= 0:
        pieces.append(f"{start}...{end}")
        return left - len(pieces[-1])
    pieces.append(start)
    left -= len(start)
    is_dict = isinstance(value, dict)
    for index, item in enumerate(value):
        if left <= 0:
            pieces.append(", ..." if index else "...")
            break
        if index:
            pieces.append(", ")
            left -= 2
        left = _describe(item, pieces, left, levels - 1)
        if is_dict:
            pieces.append(": ")
            left = _describe(value[item], pieces, left - 2, levels - 1)
    pieces.append(end)
    return left - len(end)


def _brackets(value: Any) -> tuple[str, str]:
    if isinstance(value, tuple):
        return "(", ",)" if len(value) == 1 else ")"
    if isinstance(value, list):
        return "[", "]"
    if isinstance(value, dict):
        return "{", "}"
    return ("{", "}") if type(value) is set else (f"{type(value).__name__}({{", "})")


def _quote(value: str | bytes, left: int) -> str:
    if isinstance(value, str):
        return "'" + _cut(value, left).replace("'", "\\'") + "'"
    shown = value[: max(left, 0)]
    try:
        text = shown.decode()
    except UnicodeDecodeError:
        text = shown.hex()
    return f"b'{text}{'...' if len(shown) < len(value) else ''}'"


def _cut(text: str, left: int) -> str:
    if len(text) < left:
        return text
    return text[: max(left, 0)].rsplit(" ", 1)[0] + "..."


def _repr(value: object) -> str:
    try:
        return repr(value)
    # A user's broken __repr__ must not stop a task from being sent.
    except Exception as exc:
        return _unrepresentable(value, exc)


def _unrepresentable(value: object, exc: Exception) -> str:
    return f"<unrepresentable {type(value).__name__}: {type(exc).__name__}>"
