"""Checks of the signatures in a message: untrusted data that makes a worker send tasks.

A message contains the signatures of the calls that follow it: callbacks, errbacks, the remaining
steps of its chain, and the body of its chord. All of them are checked when the message is read, so
that later code can rely on their shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import msgspec

from greenq.protocol.limits import COUNT, KEY, NAME, ListOf, OneOf, Optional, refusal

if TYPE_CHECKING:
    from greenq.protocol.limits import Rule
    from greenq.protocol.message import TaskMessage

MOST_DEPTH: Final = 100
"""How deeply signatures may be nested in one another."""

FOLLOWING: Final = ("callbacks", "errbacks", "chain", "chord")
"""The fields of a message that contain signatures."""

_OBJECT = OneOf((dict,))
_LIST = OneOf((list, tuple))

_SIGNATURE: Final[Mapping[str, Rule]] = {
    "task": KEY,
    "args": _LIST,
    "kwargs": _OBJECT,
    "options": _OBJECT,
    "subtask_type": Optional(NAME),
}

# The options that become part of a key, or that code calculates with. The other options are checked
# when they are used, as they are whenever a task is sent.
_OPTIONS: Final[Mapping[str, Rule]] = {
    "task_id": Optional(KEY),
    "group_id": Optional(KEY),
    "group_index": Optional(COUNT),
    "root_id": Optional(KEY),
    "parent_id": Optional(KEY),
    "chain": Optional(_LIST),
    "chord": Optional(_OBJECT),
    "stamped_headers": Optional(ListOf(NAME, most=1000)),
}

_TYPES: Final = (None, "chain", "group", "chord")

# The tasks that are always a kind of workflow, whatever else their signatures contain.
_ITEMS = ("celery.chunks",)


_Key: TypeAlias = Annotated[str, KEY.meta]
_Count: TypeAlias = Annotated[int, COUNT.meta]


class _PlainOptions(msgspec.Struct):
    # Options that are not listed here are checked when they are used.
    task_id: _Key | None = None
    # The body of a chord has both a group_id and a group_index.
    group_id: _Key | None = None
    group_index: _Count | None = None
    root_id: None = None
    parent_id: None = None
    chain: None = None
    chord: None = None
    link: None = None
    link_error: None = None
    on_error_once: None = None
    on_done: None = None
    stamped_headers: None = None


class _PlainSignature(msgspec.Struct):
    """A task's signature that contains no other signatures, like most steps and bodies of chords.

    The check is done in C, since a message contains all remaining steps of its chain.
    """

    task: _Key
    args: list[Any]
    kwargs: dict[str, Any]
    options: _PlainOptions
    subtask_type: None = None


def _is_plain(signature: object) -> bool:
    try:
        found = msgspec.convert(signature, _PlainSignature)
    except msgspec.ValidationError:
        return False
    # Text that is not ASCII may be invalid Unicode.
    options = found.options
    ids = (options.task_id or "") + (options.group_id or "")
    return found.task.isascii() and ids.isascii() and found.task not in _ITEMS


def check_following(message: TaskMessage) -> tuple[TaskMessage, str]:
    """Check the signatures in a message.

    Returns:
        The message without its invalid fields, and what is wrong with the first of these fields, or
        "" if all fields are valid.
    """
    reasons = {}
    for field in FOLLOWING:
        value = getattr(message, field)
        if value:
            reason = _wrong_field(field, value)
            if reason:
                reasons[field] = reason
    if not reasons:
        return message, ""
    without: dict[str, Any] = dict.fromkeys(reasons)
    return replace(message, **without), next(iter(reasons.values()))


def _wrong_field(field: str, value: Any) -> str:
    found = [value] if field == "chord" else value
    for number, signature in enumerate(found):
        if _is_plain(signature):
            continue
        reason = wrong_signature(signature)
        if reason:
            where = field if field == "chord" else f"{field}[{number}]"
            return f"{where} is not a signature: {reason}"
    return ""


def wrong_signature(signature: object) -> str:
    """Return what is wrong with a signature; "" if it is valid."""
    # The check does not recurse, because the depth is untrusted.
    left: list[tuple[object, int]] = [(signature, 1)]
    while left:
        found, depth = left.pop()
        if depth > MOST_DEPTH:
            return f"signatures are nested more than {MOST_DEPTH} levels deep"
        if not isinstance(found, dict):
            return f"it is {type(found).__name__}, not an object"
        reason = _wrong_shape(found)
        if reason:
            return reason
        left += [(inner, depth + 1) for inner in _inside(found)]
    return ""


def _wrong_shape(signature: dict[str, Any]) -> str:
    for name in ("task", "args", "kwargs", "options"):
        if name not in signature:
            return f"it has no {name}"
    reason = refusal(signature, _SIGNATURE)
    if reason:
        return reason
    kind = signature.get("subtask_type")
    if kind not in _TYPES:
        return f"its subtask_type {kind!r:.50} is unknown"
    reason = refusal(signature["options"], _OPTIONS)
    if reason:
        return f"its option {reason}"
    reason = _wrong_parts(kind, signature["kwargs"])
    if not reason and signature["task"] in _ITEMS:
        return _wrong_chunks(signature["kwargs"])
    return reason


def _wrong_parts(kind: str | None, kwargs: Mapping[str, Any]) -> str:
    """Return what is wrong with the fields that contain a signature's parts; "" if valid."""
    if kind in ("chain", "group") and not isinstance(kwargs.get("tasks"), (list, tuple)):
        return f"a {kind} has no list of tasks"
    if kind == "chord":
        if not isinstance(kwargs.get("header"), (dict, list, tuple)):
            return "a chord has no header"
        if not isinstance(kwargs.get("kwargs"), (dict, type(None))):
            return "the kwargs of a chord's header are not an object"
    return ""


def _wrong_chunks(kwargs: Mapping[str, Any]) -> str:
    size = kwargs.get("n")
    if type(size) is not int or size < 1 or not isinstance(kwargs.get("it"), (list, tuple)):
        return "chunks need a list and a whole number of at least 1"
    return ""


def _inside(signature: Mapping[str, Any]) -> Iterator[object]:
    """Yield the signatures directly inside a signature."""
    kwargs, options = signature["kwargs"], signature["options"]
    kind = signature.get("subtask_type")
    if kind in ("chain", "group"):
        yield from kwargs["tasks"]
    elif kind == "chord":
        header = kwargs["header"]
        yield from [header] if isinstance(header, dict) else header
        yield kwargs.get("body")
    if signature["task"] in _ITEMS:
        yield kwargs.get("task")
    for name in ("link", "link_error", "chain", "chord", "on_error_once", "on_done"):
        value = options.get(name)
        if value:
            yield from value if isinstance(value, (list, tuple)) else [value]
