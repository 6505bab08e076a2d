"""The stored result of a task, and exceptions as data."""

from __future__ import annotations

import pickle
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quote
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec

from greenq.errors import CELERY_NAMES, DecodeError, EncodeError, RemoteError, SecurityError
from greenq.protocol.compress import KNOWN, compress, decompress
from greenq.protocol.limits import DENSE_BYTES, MOMENT_TEXT, NAME, RESULT, most_items, refusal
from greenq.protocol.serialize import (
    UnpicklableException,
    content_type_of,
    dumps,
    json_dumps,
    loads,
    saferepr,
)
from greenq.states import EXCEPTION_STATES, SUCCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# The prefix of a compressed payload. The content type, a zero byte and the data follow it.
COMPRESSED_MARK = b"\x00celery-compressed\x00"
DEFAULT_MAX_BYTES = 256 << 20

_TWINS = {name: cls for cls, name in CELERY_NAMES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultMeta:
    """A stored result.

    Attributes:
        task_id: the call's id.
        status: a state from `greenq.states`, or a custom one.
        result: the return value; an exception for RETRY, FAILURE and REVOKED; the meta of a
            custom state.
        traceback: the traceback as text, or None.
        children: result tuples of the tasks that the call sent; None or empty for none.
        date_done: when the call ended, as ISO 8601 text; None unless the state is final.
        group_id: the id of the group that the call belongs to; None outside a group.
        parent_id: the id of the call that sent this one; None if no task sent it.
        extra: the fields that ``result_extended`` adds: name, args, kwargs, worker, retries, queue
            and stamps.
    """

    task_id: str
    status: str
    result: Any = None
    traceback: str | None = None
    children: Sequence[Any] | None = ()
    date_done: str | None = None
    group_id: str | None = None
    parent_id: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


_Name: TypeAlias = Annotated[str, NAME.meta]
_Moment: TypeAlias = Annotated[str, MOMENT_TEXT.meta]


class _Success(msgspec.Struct, forbid_unknown_fields=True):
    """The form of most results; the decoder checks all rules as it goes."""

    status: Literal["SUCCESS"]
    result: Any
    traceback: None
    children: list[Any]
    date_done: _Moment
    task_id: _Name
    group_id: _Name | None = None
    parent_id: _Name | None = None


_read_success = msgspec.json.Decoder(_Success).decode

# Celery's tag for a value of an extended type, and the beginning of any escape that can disguise
# one of its characters.
_TAGGED = (b"__type__", b"\\u00")

# Matches ids that need no escaping in JSON.
is_plain = re.compile(r"[\w-]+", re.ASCII).fullmatch

# The second in which `utc_now` was last called, and its text.
_last_second = (0, "")


def utc_now() -> str:
    """Return the time in the form of `date_done`: ISO 8601 in UTC, with microseconds.

    The text is cached for each second, since a busy worker needs it many times a second.
    """
    global _last_second
    now_us = time.time_ns() // 1000
    second, text = _last_second
    if now_us // 1_000_000 != second:
        second = now_us // 1_000_000
        text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        _last_second = second, text
    return f"{text}{now_us % 1_000_000:06d}+00:00"


def encode_success(
    task_id: str,
    result: Any,
    children: Sequence[Any] = (),
    group_id: str | None = None,
    parent_id: str | None = None,
) -> bytes:
    """Return the JSON that `encode_result` returns for a success, in a third of the time.

    The task's id must satisfy `is_plain`.

    Raises:
        EncodeError: the result cannot be serialized.
    """
    places, date_done = "", utc_now()
    if group_id:
        places = f'"group_id": {quote(group_id)}, '
    if parent_id:
        places += f'"parent_id": {quote(parent_id)}, '
    return (
        f'{{"status": "SUCCESS", "result": {json_dumps(result)}, "traceback": null, '
        f'"children": {json_dumps(children) if children else "[]"}, "date_done": "{date_done}", '
        f'{places}"task_id": "{task_id}"}}'
    ).encode()


def encode_result(
    *,
    task_id: str,
    status: str,
    result: Any,
    traceback: str | None = None,
    children: Sequence[Any] | None = (),
    date_done: str | None = None,
    group_id: str | None = None,
    parent_id: str | None = None,
    extended: Mapping[str, Any] | None = None,
    serializer: str = "json",
    compression: str | None = None,
) -> bytes:
    """Return the payload of a result.

    Shape: status, result, traceback, children, date_done, then group_id, parent_id and `extended`
        if given, then task_id. An exception becomes data; see `exception_to_wire`.

    Raises:
        EncodeError: the result, or a value of `extended`, cannot be serialized.
    """
    if status in EXCEPTION_STATES and isinstance(result, BaseException):
        result = _exception_for(result, serializer)
    meta: dict[str, Any] = {
        "status": status,
        "result": result,
        "traceback": traceback,
        "children": children,
        "date_done": date_done,
    }
    if group_id:
        meta["group_id"] = group_id
    if parent_id:
        meta["parent_id"] = parent_id
    if extended:
        meta.update(extended)
    meta["task_id"] = task_id
    return _pack(meta, serializer, compression)


def encode_group(
    members: object, serializer: str = "json", compression: str | None = None
) -> bytes:
    """Return the payload of a saved group; `members` is the group's result tuple.

    Shape: an object with the one field ``result``.
    """
    return _pack({"result": members}, serializer, compression)


def encode_part(
    task_id: str,
    status: str,
    result: object,
    serializer: str = "json",
    compression: str | None = None,
) -> bytes:
    """Return a part of a chord as a payload: the outcome of one task in the chord's header.

    Shape: the list ``[1, task id, status, result]``; an exception becomes data, as in a result.

    Raises:
        EncodeError: the result cannot be serialized.
    """
    if status == SUCCESS and serializer == "json" and not compression:
        # For most parts, this gives the same text in half the time.
        return f'[1, {quote(task_id)}, "SUCCESS", {json_dumps(result)}]'.encode()
    if status in EXCEPTION_STATES and isinstance(result, BaseException):
        result = _exception_for(result, serializer)
    return _pack([1, task_id, status, result], serializer, compression)


def decode_part(
    payload: bytes,
    *,
    serializer: str = "json",
    accept: frozenset[str],
    max_bytes: int = DEFAULT_MAX_BYTES,
    accept_compression: frozenset[str] = KNOWN,
) -> tuple[str, str, Any]:
    """Parse a part of a chord: the task's id, its state, and its value or exception.

    Raises:
        ContentDisallowed: the serializer's content type is not in `accept`.
        DecodeError: the payload is damaged, too large, or not a part.
    """
    part = _unpack(payload, serializer, accept, max_bytes, accept_compression)
    if not isinstance(part, (list, tuple)) or len(part) != 4:
        raise DecodeError("a part of a chord is not a list of four items", payload)
    _, task_id, status, result = part
    if not isinstance(task_id, str) or not isinstance(status, str):
        raise DecodeError("a part of a chord lacks a task id or a status", payload)
    if status in EXCEPTION_STATES:
        result = exception_from_wire(result)
    return task_id, status, result


def _pack(meta: object, serializer: str, compression: str | None) -> bytes:
    payload = json_dumps(meta).encode() if serializer == "json" else dumps(meta, serializer).data
    if not compression:
        return payload
    data, content_type = compress(payload, compression)
    return COMPRESSED_MARK + content_type.encode() + b"\x00" + data


def decode_result(
    payload: bytes,
    *,
    serializer: str = "json",
    accept: frozenset[str],
    max_bytes: int = DEFAULT_MAX_BYTES,
    accept_compression: frozenset[str] = KNOWN,
) -> ResultMeta:
    """Parse the payload of a result; compression is detected, but the serializer must be known.

    Units: `max_bytes` limits the payload as received and as expanded, and thereby the number of
        its values.

    Raises:
        ContentDisallowed: the serializer's content type is not in `accept`.
        DecodeError: the payload is damaged, too large, or not a result.
        SecurityError: the stored exception names an object that is not an exception class.
    """
    if (
        serializer == "json"
        and len(payload) <= min(DENSE_BYTES, max_bytes)
        and content_type_of(serializer) in accept
        and not any(each in payload for each in _TAGGED)
    ):
        try:
            found = _read_success(payload)
        except (ValueError, RecursionError):
            # The slower code below reads all other results, and reports what is wrong with a
            # damaged one.
            pass
        else:
            return ResultMeta(
                task_id=found.task_id,
                status="SUCCESS",
                result=found.result,
                children=found.children,
                date_done=found.date_done,
                group_id=found.group_id,
                parent_id=found.parent_id,
            )
    meta = _unpack(payload, serializer, accept, max_bytes, accept_compression)
    return _result_meta(meta, payload)


def decode_group(
    payload: bytes,
    *,
    serializer: str = "json",
    accept: frozenset[str],
    max_bytes: int = DEFAULT_MAX_BYTES,
    accept_compression: frozenset[str] = KNOWN,
) -> Any:
    """Parse the payload of a saved group, and return the group's result tuple.

    Raises:
        ContentDisallowed: the serializer's content type is not in `accept`.
        DecodeError: the payload is damaged, too large, or not a saved group.
    """
    meta = _unpack(payload, serializer, accept, max_bytes, accept_compression)
    if not isinstance(meta, dict) or "result" not in meta:
        raise DecodeError("the payload is not a saved group", payload)
    return meta["result"]


def _unpack(
    payload: bytes,
    serializer: str,
    accept: frozenset[str],
    max_bytes: int,
    accept_compression: frozenset[str],
) -> Any:
    if len(payload) > max_bytes:
        raise DecodeError(f"a result of {len(payload)} bytes exceeds {max_bytes} bytes", payload)
    data = payload
    if payload.startswith(COMPRESSED_MARK):
        content_type, _, data = payload[len(COMPRESSED_MARK) :].partition(b"\x00")
        kind = content_type.decode("utf-8", "replace")
        data = decompress(data, kind, max_bytes, accept_compression)
    return loads(data, content_type_of(serializer), "utf-8", accept, most_items(max_bytes))


def _result_meta(meta: Any, payload: bytes) -> ResultMeta:
    if not isinstance(meta, dict):
        raise DecodeError("the result is not an object", payload)
    if "status" not in meta or "task_id" not in meta:
        raise DecodeError("the result lacks a status or a task_id", payload)
    wrong = refusal(meta, RESULT)
    if wrong:
        raise DecodeError(f"the result's {wrong}", payload)
    extra = dict(meta)
    status, traceback = extra.pop("status"), extra.pop("traceback", None)
    result = extra.pop("result", None)
    if status in EXCEPTION_STATES and result is not None:
        result = exception_from_wire(result, traceback)
    return ResultMeta(
        task_id=extra.pop("task_id"),
        status=status,
        result=result,
        traceback=traceback,
        children=extra.pop("children", None),
        date_done=extra.pop("date_done", None),
        group_id=extra.pop("group_id", None),
        parent_id=extra.pop("parent_id", None),
        extra=extra,
    )


# --- exceptions ----------------------------------------------------------------------------------


def exception_to_wire(exc: BaseException, encodable: Callable[[object], object]) -> dict[str, Any]:
    """Turn an exception into data: its class, its arguments and its module.

    If a reader could not rebuild the same exception from its arguments, its text is included: as
    ``exc_text``, and also as the only argument if the constructor refuses the original arguments.

    Args:
        exc: any exception, even one whose methods raise.
        encodable: a function that raises EncodeError for an argument that cannot be serialized;
            such an argument is replaced by its repr.
    """
    cls = type(exc)
    if cls is RemoteError and exc.stored is not None:  # type: ignore[attr-defined]
        stored: Mapping[str, Any] = exc.stored  # type: ignore[attr-defined]
        return dict(stored)
    # A class can set its ``__module__`` to anything.
    module: Any
    module, name = CELERY_NAMES.get(cls) or (cls.__module__, cls.__qualname__)
    args = [_argument(value, encodable) for value in _args(exc)]
    wire = {
        "exc_type": name,
        "exc_message": args,
        "exc_module": module if isinstance(module, str) else "builtins",
    }
    if cls in CELERY_NAMES:
        return wire
    try:
        text = str(exc)
    except Exception:
        return wire
    text = text.encode(errors="backslashreplace").decode()
    try:
        again = str(cls(*args))
    # The constructor's parameters may differ from the arguments that it stores in ``args``.
    except Exception:
        wire["exc_message"] = [text] if text else args
        again = ""
    if again != text:
        wire["exc_text"] = text
    return wire


def exception_from_wire(data: Any, traceback: str | None = None) -> Exception:
    """Turn the data of `exception_to_wire` back into an exception.

    Only modules that are already imported are searched for the class. Celery's own exceptions
    become greenq's. An exception that cannot be rebuilt becomes a `RemoteError`, whose text is the
    stored text or the end of the `traceback`.

    Raises:
        SecurityError: the name refers to an object that is not an exception class.
        DecodeError: the data does not describe an exception.
    """
    if isinstance(data, Exception) and not isinstance(data, UnpicklableException):
        return data
    stored = _stored_exception(data)
    found = _exception_class(stored.module, stored.name)
    if found is not None and issubclass(found, Exception):
        # A constructor's parameters may differ from the arguments that it stores in ``args``.
        with suppress(Exception):
            return _with_text(found(*stored.args), stored.args, stored.text)
    keeps_text = not isinstance(data, dict) or "exc_text" in data
    return _remote_error(stored, traceback, keeps_text=keeps_text)


class _StoredException(NamedTuple):
    """An exception as data: its class, its arguments and, if stored, its text."""

    module: str | None
    name: str
    args: Sequence[Any]
    text: str | None


def _stored_exception(data: Any) -> _StoredException:
    """Read the data of an exception; a serializer may already have turned it into an object."""
    text: Any = None
    if isinstance(data, UnpicklableException):
        module, name, message, text = (*data.args, None, None, (), None)[:4]
    elif isinstance(data, BaseException):
        cls = type(data)
        module, name, message = cls.__module__, cls.__qualname__, _args(data)
    elif isinstance(data, dict):
        module, name = data.get("exc_module"), data.get("exc_type")
        message, text = data.get("exc_message", ""), data.get("exc_text")
    else:
        raise DecodeError(f"a stored exception must be an object, not {type(data).__name__}")
    if not isinstance(name, str) or not isinstance(module, (str, type(None))):
        raise DecodeError("a stored exception has no exc_type, or its exc_module is not text")
    _require_name(module, name)
    args = message if isinstance(message, (list, tuple)) else (message,)
    return _StoredException(module, name, args, text if isinstance(text, str) else None)


def _remote_error(
    stored: _StoredException, traceback: str | None, *, keeps_text: bool
) -> RemoteError:
    """Return the error that replaces an exception that cannot be rebuilt."""
    module, name, args, text = stored
    shown = name if module in (None, "builtins") else f"{module}.{name}"
    if text is None:
        text = _text_in(traceback, (shown, name)) if traceback else None
    if text is None:
        text = str(args[0]) if len(args) == 1 else ", ".join(map(saferepr, args))
    error = RemoteError(shown, text, traceback)
    error.stored = {"exc_type": name, "exc_message": list(args), "exc_module": module}
    if keeps_text:
        error.stored["exc_text"] = text
    return error


def _with_text(exc: Exception, args: Sequence[Any], text: str | None) -> Exception:
    """Make a rebuilt exception show its original text."""
    if text is None or str(exc) == text:
        return exc
    # The constructor may have changed the arguments.
    exc.args = tuple(args)
    if str(exc) != text:
        exc.add_note(f"its text in the worker was: {text}")
    return exc


def _text_in(traceback: str, names: tuple[str, ...]) -> str | None:
    """Return the text of the exception at the end of a traceback, if it has one of these names."""
    for name in names:
        _, found, text = f"\n{traceback}".rpartition(f"\n{name}: ")
        if found:
            return text.rstrip("\n")
    return None


def _require_name(module: str | None, name: str) -> None:
    """Refuse text that cannot be the name of a class.

    Raises:
        DecodeError: the text cannot be such a name.
    """
    try:
        type(name.rpartition(".")[2] or "Exception", (), {"__module__": module or ""})
        f"{module}.{name}".encode()
    except (ValueError, TypeError) as exc:
        raise DecodeError(f"{name!r} cannot be the name of an exception class") from exc


def _exception_for(exc: BaseException, serializer: str) -> object:
    """Choose the form of an exception: with pickle, the exception itself if possible."""
    if serializer == "pickle" and type(exc) not in CELERY_NAMES and _survives_pickle(exc):
        return exc
    check = _pickle_both_ways if serializer == "pickle" else lambda value: dumps(value, serializer)
    return exception_to_wire(exc, check)


def _survives_pickle(exc: BaseException) -> bool:
    try:
        data = dumps(exc, "pickle").data
        # Unpickling calls the exception's constructor, which may change the text.
        return str(pickle.loads(data)) == str(exc)
    except Exception:
        return False


def _pickle_both_ways(value: object) -> None:
    """Check that a value can be pickled and unpickled; many exceptions can only be pickled."""
    data = dumps(value, "pickle").data
    try:
        pickle.loads(data)
    # Unpickling calls the exception's constructor, which may raise anything.
    except Exception as exc:
        raise EncodeError(f"cannot be read from its pickle: {type(exc).__name__}") from exc


def _args(exc: BaseException) -> tuple[Any, ...]:
    args: Any
    try:
        args = exc.args
    # A class may override ``args`` with a property that raises.
    except Exception:
        return ()
    return args if isinstance(args, tuple) else (args,)


def _argument(value: Any, encodable: Callable[[object], object]) -> Any:
    try:
        encodable(value)
    except EncodeError:
        return saferepr(value)
    return value


def _exception_class(module: str | None, name: str) -> type[BaseException] | None:
    """Find a class in the modules already imported; return None if it is not there."""
    twin = _TWINS.get((module or "", name))
    if twin is not None:
        return twin
    found: Any = sys.modules.get(module) if module else None
    # Do not use getattr here: it would run a lazy module's code for an untrusted name.
    for part in name.split("."):
        found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
    if found is None:
        return None
    if not isinstance(found, type) or not issubclass(found, BaseException):
        raise SecurityError(f"{module}.{name} is stored as an exception, but is not one")
    return found
