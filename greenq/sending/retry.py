"""The next run of a task that retries: checks of its options, and its message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from greenq.protocol.message import parse_time
from greenq.protocol.serialize import saferepr
from greenq.sending.options import SendOptions, check_send_options
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from datetime import tzinfo

    from greenq.protocol.message import TaskMessage

# The send options that are copied into the message unchanged, and the message's fields for them.
_FIELDS = {
    "shadow": "shadow", "root_id": "root_id", "parent_id": "parent_id", "group_id": "group",
    "group_index": "group_index", "ignore_result": "ignore_result", "argsrepr": "argsrepr",
    "kwargsrepr": "kwargsrepr",
}  # fmt: skip

# Options that a retry does not change.
_KEPT = frozenset({
    "link", "link_error", "chain", "chord", "stamped_headers", "stamps", "replaced_task_nesting",
    "add_to_parent",
})  # fmt: skip


def check(
    task: str,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options of the next run, in the form that sending uses.

    Raises:
        TypeError: an option is unknown, has a wrong value, or would change the task's id or its
            place in a workflow.
    """
    known = SendOptions.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(f"retry() has no option {name!r}{suggestion(name, known)}")
    if options.get("task_id") is not None:
        raise TypeError("retry() has no option 'task_id': the next run keeps this one's id")
    for name in sorted(_KEPT & options.keys()):
        if options[name] is not None:
            raise TypeError(
                f"retry() has no option {name!r}: the next run keeps this one's place in a workflow"
            )
    if args is not None and (isinstance(args, str) or not isinstance(args, (Sequence, set))):
        raise TypeError(f"retry(args={args!r}): must be a tuple or a list")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"retry(kwargs={kwargs!r}): must be a dict")
    return check_send_options(task, options)


def following(
    message: TaskMessage,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    zone: tzinfo,
    clock_offset_s: float,
) -> TaskMessage:
    """Return the next run's message: the same id, one more retry, and unset options as before.

    `clock_offset_s` is how far the server's clock, which workers use for times, is ahead of this
    machine's.
    """
    now = datetime.now(UTC) + timedelta(seconds=clock_offset_s)
    changes = {field: options[name] for name, field in _FIELDS.items() if name in options}
    if "expires" in options:
        changes["expires"] = _time(options["expires"], now, zone)
    hard_s, soft_s = message.timelimit
    changes["timelimit"] = (
        options.get("time_limit", hard_s), options.get("soft_time_limit", soft_s),
    )  # fmt: skip
    if args is not message.args:
        changes.setdefault("argsrepr", saferepr(args))
    if kwargs is not message.kwargs:
        changes.setdefault("kwargsrepr", saferepr(kwargs))
    if "headers" in options:
        changes["headers"] = {**message.headers, **options["headers"]}
    # As in Celery, a task that was not sent by another task becomes its own parent.
    changes.setdefault("parent_id", message.parent_id or message.id)
    return replace(
        message,
        args=list(args),
        kwargs=dict(kwargs),
        eta=_time(options.get("eta") or options.get("countdown"), now, zone),
        retries=message.retries + 1,
        redelivered=False,
        **changes,
    )


def expiration(options: Mapping[str, Any], expires: str | None, kept: str | None) -> str | None:
    """Return the property `expiration`: milliseconds to a newly set expiry, otherwise `kept`."""
    if "expires" not in options or expires is None:
        return kept
    left_s = (parse_time(expires) - datetime.now(UTC)).total_seconds()
    return str(max(0, round(left_s * 1000)))


def _time(given: Any, now: datetime, zone: tzinfo) -> str | None:
    """Return a datetime, or seconds from now, as ISO 8601 text."""
    if isinstance(given, datetime):
        return given.isoformat()
    if isinstance(given, (int, float)):
        return (now + timedelta(seconds=given)).astimezone(zone).isoformat() if given else None
    return given or None
