"""Sending workflows: plans, and groups whose members are still being produced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from greenq.canvas import index, plan
from greenq.canvas.stream import GroupStream, bare
from greenq.errors import AccessRefused, ConnectionLost, NotAllSent
from greenq.result import AsyncResult, AsyncResults, GroupResult, result_from_tuple
from greenq.sending.context import current_context
from greenq.sending.producer import CallsCutOff

_log = logging.getLogger(__name__)


def send_signature(
    app: Any,
    signature: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Any:
    """Send a signature of any kind through an app, and return its handle. Switches: yes.

    Raises:
        NotAllSent: sending ended early, after only some of the messages.
    """
    given, in_task = _in_task(options)
    made = plan.plan(signature, args, kwargs, **given)
    if app.config.task.workflow_index:
        index.announce(app, made, given.get("root_id"))
    _seal(app, made.chords)
    with_chords = _Listing(app, lambda: [(start, start.size) for start in made.chords])
    _send(
        app,
        made.calls,
        plan.kind(signature),
        lambda count: [call.options["task_id"] for call in made.calls[:count]],
        whole=True,
        on_more=with_chords.open,
    )
    with_chords.close()
    return _noted(result_from_tuple(made.handle, app), in_task)


def send_stream(
    app: Any,
    group: Any,
    chord: Mapping[str, Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Any:
    """Send a group, or `chord` with it as the header, while members are produced. Switches: yes.

    The size of the chord is written just before the last push, since it is not known earlier.

    Raises:
        NotAllSent: sending ended early; the chord's body will not run.
    """
    given, in_task = _in_task(options)
    source = group.take_source()
    stream = GroupStream(bare(group), chord, args, kwargs, given)
    listing = _Listing(app, lambda: [] if stream.start is None else [(stream.start, None)])

    def calls() -> Iterator[plan.Call]:
        found = stream.calls(source)
        if app.config.task.workflow_index:
            found = index.announced(app, stream, found, given.get("root_id"))
        for call, chords in found:
            _seal(app, chords)
            yield call

    def seal() -> None:
        if chord is not None and stream.size:
            app.transport.chords.seal([(stream.group_id, stream.size)])

    if chord is not None:
        # A chord collects results: if they are disabled, refuse it before anything is sent.
        app.transport.chords.seal(())
    _send(
        app,
        calls(),
        "group",
        lambda count: stream.ids[:count],
        on_more=listing.open,
        on_last=seal,
    )
    listing.close()
    return _noted(_stream_handle(app, stream, given), in_task)


def _stream_handle(app: Any, stream: GroupStream, given: Mapping[str, Any]) -> Any:
    """Return the handle of a sent stream; if a chord has no members, send its body first."""
    members = (
        _Members(stream, app)
        if stream.special
        else AsyncResults(stream.ids[: stream.count], app.transport, app=app)
    )
    found = GroupResult(stream.group_id, members, app=app)
    if stream.start is None or stream.body_handle is None:
        return found
    if not stream.size:
        body = plan.plan(stream.start.body, ([],))
        if app.config.task.workflow_index:
            index.announce(app, body, given.get("root_id") or stream.group_id)
        _send(app, body.calls, "chord body", lambda count: [])
    handle = result_from_tuple(stream.body_handle, app)
    first = handle
    while first.parent is not None:
        first = first.parent
    first.parent = found
    return handle


def _seal(app: Any, starts: Sequence[plan.ChordStart]) -> None:
    """Write the data that workers need about chords before the last part of each header ends."""
    if starts:
        app.transport.chords.seal((start.group_id, start.size) for start in starts)
    for start in starts:
        if start.saved is not None:
            app.backend.save_group(start.group_id, start.saved)


def _send(
    app: Any,
    calls: Any,
    what: str,
    ids: Callable[[int], Sequence[str]],
    **options: Any,
) -> None:
    try:
        app.send_calls(calls, **options)
    except CallsCutOff as cut:
        lost = isinstance(cut.reason, ConnectionLost)
        if not cut.sent and (lost or not cut.unknown):
            # Either nothing was sent, or the error itself says that something may have been.
            raise cut.reason from cut.reason.__cause__
        sent, unknown = ids(cut.sent), ids(cut.sent + cut.unknown)[cut.sent :]
        raise NotAllSent(f"in a {what}", sent, unknown, cut.reason) from cut.reason


def _in_task(options: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the options, completed from the current task, and the context to record children."""
    given = dict(options)
    add = given.pop("add_to_parent", True)
    context = current_context.get()
    if context is not None and context.message is not None:
        given = {"root_id": context.root_id, "parent_id": context.id, **given}
    return given, context if add else None


def _noted(handle: Any, context: Any) -> Any:
    if context is not None:
        context.children.append(handle)
    return handle


class _Listing:
    """Keeps chords on the list of chords being sent, if sending takes more than one push."""

    def __init__(
        self, app: Any, starts: Callable[[], list[tuple[plan.ChordStart, int | None]]]
    ) -> None:
        self._app = app
        self._starts = starts
        self._entries: list[str] = []

    def open(self) -> None:
        """Put the chords on the list, which only monitoring reads, if this user is allowed to."""
        chords = self._app.transport.chords
        for start, size in self._starts():
            body_id = start.body["options"]["task_id"]
            try:
                entry = chords.open(start.group_id, start.body["task"], body_id, size)
            except AccessRefused as exc:
                _log.info("chord %s is sent without being listed: %s", start.group_id, exc)
                return
            self._entries.append(entry)

    def close(self) -> None:
        """Take the chords off the list."""
        for entry in self._entries:
            self._app.transport.chords.close(entry)


class _Members(Sequence[Any]):
    """The handles of a streamed group in which some members are not single new tasks."""

    def __init__(self, stream: GroupStream, app: Any) -> None:
        self._stream = stream
        self._app = app

    def __len__(self) -> int:
        return self._stream.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        special = self._stream.special.get(at)
        if special is not None:
            return result_from_tuple(special, self._app)
        return AsyncResult(self._stream.ids[at], app=self._app)
