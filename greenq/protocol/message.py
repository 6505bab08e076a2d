"""One call of a task: encodes version 2 of Celery's task protocol, and reads versions 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from greenq.errors import DecodeError, EncodeError
from greenq.protocol.compress import KNOWN, compress, decompress
from greenq.protocol.limits import (
    DENSE_BYTES,
    KEY,
    MESSAGE,
    has_more_items,
    most_items,
    named,
)
from greenq.protocol.serialize import dumps, loads, saferepr

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greenq.protocol.envelope import Envelope


# Longer descriptive texts from a sender are shortened: `shadow` and `origin` to the first of these
# lengths, `argsrepr` and `kwargsrepr` to the second.
MOST_SHADOW_CHARS = 200
MOST_REPR_CHARS = 2000


# The class is not frozen, since that would double the cost of creating a message. Even so, messages
# are never modified.
@dataclass(slots=True)
class TaskMessage:
    """One call of a task, as sent.

    Attributes:
        task: the registered name.
        id: the call's id; any text.
        args: the positional arguments.
        kwargs: the keyword arguments.
        shadow: a name to show in logs and events instead of `task`, shortened if long; None for
            none.
        eta: the earliest time to run, as ISO 8601 text; None means immediately. See `parse_time`.
        expires: the latest time to run, as ISO 8601 text; None means no limit.
        group: the id of the group that the call belongs to, or None.
        group_index: its place in the group, from 0; None outside a group.
        retries: how many times it was retried before; 0 the first time.
        timelimit: the hard and soft time limits in seconds; None if the message sets no limit.
        root_id: the id of the workflow's first call; None is encoded as `id`.
        parent_id: the id of the call that sent this one; None if no task did.
        argsrepr: a short description of the arguments; if None, `encode` generates one.
        kwargsrepr: the same for the keyword arguments.
        origin: the node name of the sender; None if not given.
        ignore_result: whether to store no result; None leaves this to the task.
        replaced_task_nesting: how many times the call was replaced; 0 for never.
        stamped_headers: the names of the stamps, or None.
        stamps: a mapping from the name of a stamp to its value or list of values.
        headers: the caller's own headers.
        callbacks: signatures to send on success, or None.
        errbacks: signatures to call on failure, or None.
        chain: signatures to run after the call, the next one last; or None.
        chord: the signature of the chord's body; None outside a chord.
        redelivered: whether the message was requeued after an earlier delivery.
    """

    task: str
    id: str
    args: list[Any] | tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    shadow: str | None = None
    eta: str | None = None
    expires: str | None = None
    group: str | None = None
    group_index: int | None = None
    retries: int = 0
    timelimit: tuple[float | None, float | None] = (None, None)
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = False
    replaced_task_nesting: int = 0
    stamped_headers: list[str] | None = None
    stamps: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    chain: list[Any] | None = None
    chord: Any = None
    redelivered: bool = False


def has_successors(message: TaskMessage) -> bool:
    """Return whether a message has successors or belongs to a chord."""
    return bool(message.callbacks or message.errbacks or message.chain or message.chord)


# A placeholder for the signature of a chord's body, used if a message's own body cannot be read.
UNREADABLE: dict[str, Any] = {
    "task": "", "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False,
}  # fmt: skip


class Encoded(NamedTuple):
    """A task message ready for `greenq.protocol.envelope.wrap`."""

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]


def encode(
    message: TaskMessage,
    *,
    serializer: str = "json",
    compression: str | None = None,
    max_bytes: int | None = None,
) -> Encoded:
    """Encode a task call in version 2 of the task protocol.

    Shape: the body is (args, kwargs, embed), where embed has callbacks, errbacks, chain and chord.
        All headers are present, in Celery's order. The caller's headers follow, then
        ``compression`` and ``redelivered``, if they are set.

    Units: `max_bytes` limits the body before compression; None means no limit.

    Raises:
        EncodeError: an argument cannot be serialized, or the body would be too large.
    """
    value = (message.args, message.kwargs, embed_of(message))
    body, content_type, content_encoding = dumps(value, serializer)
    if max_bytes is not None:
        check_size(body, max_bytes, is_json=serializer == "json")
    headers = headers_of(message)
    if compression:
        body, headers["compression"] = compress(body, compression)
    if message.redelivered:
        headers["redelivered"] = True
    return Encoded(body, content_type, content_encoding, headers)


def check_args(task: str, args: object) -> None:
    """Refuse arguments that are neither a list nor a tuple.

    Raises:
        EncodeError: the arguments have another type.
    """
    if not isinstance(args, (list, tuple)):
        raise EncodeError(f"args of {task} must be a list or tuple, not {type(args).__name__}")


def check_size(body: bytes, max_bytes: int, *, is_json: bool) -> None:
    """Refuse a body, not yet compressed, that workers with the same limit would refuse.

    Raises:
        EncodeError: the body is too large, or has more values than workers read at that size.
    """
    if len(body) > max_bytes:
        raise EncodeError(
            f"a body of {len(body):,} bytes exceeds task_max_body_bytes, "
            f"{max_bytes:,}: store the data elsewhere and send its name, or raise that "
            "setting here and in the workers"
        )
    if len(body) > DENSE_BYTES and is_json and has_more_items(body, most_items(max_bytes)):
        raise EncodeError(
            f"the arguments have more than {most_items(max_bytes):,} values, the most that workers "
            f"read with task_max_body_bytes = {max_bytes:,}: store the data elsewhere and send "
            "its name, or raise that setting here and in the workers"
        )


def embed_of(message: TaskMessage) -> dict[str, Any]:
    """Return the third part of a body (`embed`): what to do after the call."""
    return {
        "callbacks": message.callbacks,
        "errbacks": message.errbacks,
        "chain": message.chain,
        "chord": message.chord,
    }


def headers_of(message: TaskMessage) -> dict[str, Any]:
    """Return the headers of a message; the caller's own headers come last, and take precedence."""
    argsrepr, kwargsrepr = message.argsrepr, message.kwargsrepr
    return {
        "lang": "py",
        "task": message.task,
        "id": message.id,
        "shadow": message.shadow,
        "eta": message.eta,
        "expires": message.expires,
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "timelimit": list(message.timelimit),
        "root_id": message.id if message.root_id is None else message.root_id,
        "parent_id": message.parent_id,
        "argsrepr": saferepr(message.args) if argsrepr is None else argsrepr,
        "kwargsrepr": saferepr(message.kwargs) if kwargsrepr is None else kwargsrepr,
        "origin": message.origin,
        "ignore_result": message.ignore_result,
        "replaced_task_nesting": message.replaced_task_nesting,
        "stamped_headers": message.stamped_headers,
        "stamps": dict(message.stamps),
        **message.headers,
    }


# --- reading -------------------------------------------------------------------------------------


def decode(
    envelope: Envelope,
    *,
    accept: frozenset[str],
    max_body_bytes: int,
    accept_compression: frozenset[str] = KNOWN,
) -> TaskMessage:
    """Read a task call: protocol 2, protocol 1, or protocol 1's body under protocol 2's headers.

    Units: `max_body_bytes` limits the body as received and as expanded, and thereby the number
        of its values.

    Raises:
        ContentDisallowed: the body's content type is not in `accept`.
        DecodeError: the message is not a task call, or is too large, or a header is invalid.
    """
    headers = envelope.headers
    own = _check_fields(envelope, headers)
    body = _load_body(envelope, accept, max_body_bytes, accept_compression)
    if isinstance(body, dict):
        # Put the id where version 2 keeps it, for the code that buries the message.
        headers.setdefault("id", body.get("id"))
        headers, body = _fields_of_version_1(envelope, body)
    if not isinstance(body, (list, tuple)) or len(body) != 3:
        raise _wrong(envelope, "its body is not [args, kwargs, embed]")
    return _build(envelope, headers, own, body)


def _build(
    envelope: Envelope, headers: dict[str, Any], own: dict[str, Any], body: Any
) -> TaskMessage:
    """Combine checked headers and an unchecked body, in one long call for the sake of speed."""
    get = headers.get
    task, call_id, timelimit = get("task"), get("id"), get("timelimit")
    if not task or call_id is None:
        raise _wrong(envelope, "it has no task name or no id")
    args, kwargs, embed = body
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
        raise _wrong(envelope, "args is not a list, or kwargs is not an object")
    callbacks, errbacks, chain, chord = _read_embed(envelope, embed)
    eta, expires = get("eta"), get("expires")
    delivery_info = envelope.properties.get("delivery_info") or {}
    return TaskMessage(
        task=task,
        id=call_id,
        args=args,
        kwargs=kwargs,
        shadow=_shorten(get("shadow"), MOST_SHADOW_CHARS),
        eta=eta.isoformat() if isinstance(eta, datetime) else eta,
        expires=expires.isoformat() if isinstance(expires, datetime) else expires,
        group=get("group"),
        group_index=get("group_index"),
        retries=get("retries") or 0,
        timelimit=(timelimit[0], timelimit[1]) if timelimit else (None, None),
        root_id=get("root_id"),
        parent_id=get("parent_id"),
        argsrepr=_shorten(get("argsrepr"), MOST_REPR_CHARS),
        kwargsrepr=_shorten(get("kwargsrepr"), MOST_REPR_CHARS),
        origin=_shorten(get("origin"), MOST_SHADOW_CHARS),
        ignore_result=get("ignore_result"),
        replaced_task_nesting=get("replaced_task_nesting") or 0,
        stamped_headers=get("stamped_headers"),
        stamps=get("stamps") or {},
        headers=own,
        callbacks=callbacks,
        errbacks=errbacks,
        chain=chain,
        chord=chord,
        redelivered=get("redelivered") is True or delivery_info.get("redelivered") is True,
    )


def part_of(envelope: Envelope) -> TaskMessage | None:
    """Return a message's place in a group from its headers, for use if its body is unreadable.

    The headers do not show whether the group is the header of a chord, so the result assumes that
    it is: `UNREADABLE` stands for the signature of the body. Return None if there is no group, or
    if a header is invalid.
    """
    get = envelope.headers.get
    task, task_id = get("task"), get("id")
    if not (task and task_id and get("group")):
        return None
    try:
        _check_fields(envelope, envelope.headers)
    except DecodeError:
        return None
    return TaskMessage(
        task=task, id=task_id, group=get("group"), group_index=get("group_index"),
        root_id=get("root_id"), parent_id=get("parent_id"), chord=UNREADABLE,
    )  # fmt: skip


def _shorten(text: str | None, most: int) -> str | None:
    """Return at most `most` characters of a descriptive text that the sender has chosen."""
    return text and text[:most]


def _check_fields(envelope: Envelope, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse invalid fields; return the fields that have no rule."""
    own: dict[str, Any] = {}
    for name, value in fields.items():
        rule = MESSAGE.get(name)
        if rule is None:
            own[name] = value
            continue
        reason = rule.wrong(value)
        if reason:
            raise _wrong(envelope, named(name, reason))
    return own


def _load_body(
    envelope: Envelope,
    accept: frozenset[str],
    max_body_bytes: int,
    accept_compression: frozenset[str],
) -> Any:
    data, compression = envelope.body, envelope.headers.get("compression")
    if len(data) > max_body_bytes:
        raise DecodeError(f"a body of {len(data)} bytes exceeds {max_body_bytes} bytes", data)
    if compression is not None:
        data = decompress(data, compression, max_body_bytes, accept_compression)
    most = most_items(max_body_bytes)
    return loads(data, envelope.content_type, envelope.content_encoding, accept, most)


def _fields_of_version_1(
    envelope: Envelope, body: dict[str, Any]
) -> tuple[dict[str, Any], tuple[Any, Any, dict[str, Any]]]:
    """Split a version 1 body into version 2's headers and body."""
    fields = {name: body[name] for name in MESSAGE if name in body}
    if type(body.get("taskset")) is str:
        fields["group"] = body["taskset"]
    _check_fields(envelope, fields)
    fields.update(envelope.headers)
    embed = {name: body.get(name) for name in ("callbacks", "errbacks", "chord")}
    return fields, (body.get("args", ()), body.get("kwargs", {}), embed)


def _read_embed(envelope: Envelope, embed: Any) -> tuple[Any, Any, Any, Any]:
    if embed is None:
        return None, None, None, None
    if not isinstance(embed, dict):
        raise _wrong(envelope, "embed is not an object")
    get = embed.get
    lists = callbacks, errbacks, chain = get("callbacks"), get("errbacks"), get("chain")
    for value in lists:
        if value is not None and not isinstance(value, (list, tuple)):
            raise _wrong(envelope, "callbacks, errbacks or chain is not a list")
    chord = get("chord")
    if chord is not None and not isinstance(chord, dict):
        raise _wrong(envelope, "chord is not a signature")
    return callbacks, errbacks, chain, chord


def _wrong(envelope: Envelope, reason: str) -> DecodeError:
    task_id = envelope.headers.get("id")
    shown = f"of task {task_id!r}" if not KEY.wrong(task_id) else "without a valid id"
    return DecodeError(f"message {shown} is not a task call: {reason}", envelope.body)


def parse_time(text: str, field: str = "a time") -> datetime:
    """Parse an eta or an expiry as an aware UTC datetime; text without an offset counts as UTC.

    Raises:
        DecodeError: the text is not ISO 8601, or is outside the range of datetime; the error names
            the `field`.
    """
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC)
    except (ValueError, TypeError, OverflowError) as exc:
        raise DecodeError(f"{field} is not an ISO 8601 time: {text!r}") from exc
