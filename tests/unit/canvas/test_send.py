"""Workflows are sent in few pushes, the size of a chord before its last message."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from greenq import Greenq, chain, chord, group
from greenq.errors import EncodeError, NotAllSent, OperationalError
from greenq.protocol.message import TaskMessage
from greenq.result import GroupResult
from greenq.sending.context import Context, current_context
from tests.unit.canvas.outgoing import Outgoing


@pytest.fixture
def add(app: Greenq) -> Any:
    return app.tasks["add"]


@pytest.fixture
def total(app: Greenq) -> Any:
    return app.tasks["total"]


def test_small_workflow_is_one_push(add: Any, total: Any, outgoing: Outgoing) -> None:
    handle = (group(add.s(n, n) for n in range(5)) | total.s() | add.s(1)).delay()
    assert outgoing.notes == [("seal", [5]), "push to celery"]
    assert [message.group_index for message in outgoing.messages] == [*range(5)]
    assert {message.root_id for message in outgoing.messages} == {
        message.id for message in outgoing.messages
    }
    body = handle.parent
    assert isinstance(body.parent, GroupResult)
    assert [each.id for each in body.parent.results] == [each.id for each in outgoing.messages]


def test_header_whose_messages_contain_all_the_rest_is_one_push(
    add: Any, total: Any, outgoing: Outgoing
) -> None:
    # Some 60 KB each: a sender that dies in between would leave a workflow that cannot end.
    rest = [chord([add.s(n) for n in range(10)], total.s()) for _ in range(10)]
    chain(group(add.s(n, n) for n in range(10)), total.s(), *rest).delay()
    assert outgoing.pushes == [10]


def test_streamed_chord_is_sealed_before_its_last_push(
    add: Any, total: Any, outgoing: Outgoing
) -> None:
    handle = chord((add.s(n, n) for n in range(450)), total.s()).delay()
    assert outgoing.pushes == [200, 200, 50]
    assert outgoing.notes == [
        ("seal", []), ("open", "total", None), "push to celery", "push to celery", ("seal", [450]),
        "push to celery", "close",
    ]  # fmt: skip
    assert [message.group_index for message in outgoing.messages] == [*range(450)]
    assert {message.group for message in outgoing.messages} == {handle.parent.id}
    assert outgoing.messages[7].chord["options"]["task_id"] == handle.id
    assert [each.id for each in handle.parent.results] == [m.id for m in outgoing.messages]


def test_large_chord_of_a_list_is_sealed_first_and_listed(
    add: Any, total: Any, outgoing: Outgoing
) -> None:
    chord([add.s(n, n) for n in range(250)], total.s()).delay()
    assert outgoing.notes == [
        ("seal", [250]), ("open", "total", 250), "push to celery", "push to celery", "close",
    ]  # fmt: skip


def test_streamed_chord_without_members_sends_its_body(
    add: Any, total: Any, outgoing: Outgoing
) -> None:
    handle = chord((add.s(n, n) for n in range(0)), total.s()).delay()
    assert outgoing.calls == [("total", [[]])]
    assert outgoing.messages[0].id == handle.id


def test_streamed_members_of_every_kind_have_their_handles(
    add: Any, total: Any, outgoing: Outgoing
) -> None:
    members = [
        add.s(1, 1),
        add.s(2, 2).set(task_id="mine"),
        add.s(3, 3) | add.s(1),
        chord([add.s(4, 4)], total.s()),
        add.s(5, 5) | group(add.s(1), add.s(2)),
    ]
    handle = group(iter(members)).delay()
    first, own, last, body, several = handle.results
    assert first.id == outgoing.messages[0].id
    assert own.id == "mine"
    assert last.id == outgoing.messages[2].chain[0]["options"]["task_id"]
    assert body.id == outgoing.messages[3].chord["options"]["task_id"]
    assert len(several.results) == 2
    assert len(handle.results[1:3]) == 2
    assert outgoing.notes == [("seal", [1]), "push to celery"]


def test_memory_of_a_stream_does_not_grow(
    app: Greenq, add: Any, total: Any, outgoing: Outgoing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.transport.broker, "publish", lambda *_, **__: None)

    def peak(count: int) -> int:
        tracemalloc.start()
        chord((add.s(n, n) for n in range(count)), total.s()).delay()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(300)
    assert peak(4000) < 1.5 * peak(1000)


def test_messages_go_to_the_queues_of_their_tasks(app: Greenq, outgoing: Outgoing) -> None:
    @app.task(name="slow", queue="slow", priority=6, ignore_result=True)
    def slow() -> None:
        """Do nothing."""

    group(slow.s(), app.tasks["add"].s(1, 1), slow.s().set(queue="other")).delay()
    assert outgoing.notes == ["push to slow", "push to celery", "push to other"]
    assert [message.ignore_result for message in outgoing.messages] == [True, False, True]


def test_what_cannot_be_written_is_named_and_nothing_is_sent(add: Any, outgoing: Outgoing) -> None:
    with pytest.raises(EncodeError, match=r"task add: args\[0\] is an object"):
        group(add.s(1, 1), add.s(object(), 1)).delay()
    assert not outgoing.messages


def test_what_was_sent_before_an_error_is_told(add: Any, outgoing: Outgoing) -> None:
    with pytest.raises(NotAllSent, match="200 items were sent") as caught:
        group(add.s(n if n < 300 else object(), 1) for n in range(1000)).delay()
    assert isinstance(caught.value.__cause__, EncodeError)
    assert [*caught.value.ids] == [message.id for message in outgoing.messages]


def test_what_may_have_been_sent_is_told(app: Greenq, add: Any, outgoing: Outgoing) -> None:
    outgoing.breaks_at = 1
    other = [add.s(n, n).set(queue=queue, retry=False) for n in range(3) for queue in "ab"]
    outgoing.error = OperationalError("down")
    with pytest.raises(NotAllSent, match="0 items were sent, the next 6 may have been") as caught:
        group(other).delay()
    assert len(caught.value.unknown) == 6
    with pytest.raises(OperationalError, match="down"):
        group(other[::2]).delay()


def test_chord_cut_off_stays_listed(add: Any, total: Any, outgoing: Outgoing) -> None:
    outgoing.breaks_at = 1
    with pytest.raises(NotAllSent):
        chord((add.s(n, n).set(retry=False) for n in range(900)), total.s()).delay()
    assert outgoing.notes == [("seal", []), ("open", "total", None), "push to celery"]


def test_workflow_sent_in_a_task_is_among_its_children(
    add: Any, total: Any, outgoing: Outgoing
) -> None:
    context = Context(TaskMessage(task="t", id="me", root_id="first"), hostname="w@h")
    token = current_context.set(context)
    try:
        one = group(add.s(1, 1), add.s(2, 2)).delay()
        two = chord((add.s(n, n) for n in range(2)), total.s()).delay()
        three = (add.s(1, 1) | add.s(2)).delay()
        chain(add.s(1, 1)).apply_async(add_to_parent=False)
        add.s(1, 1).apply_async(add_to_parent=False)
    finally:
        current_context.reset(token)
    assert context.children == [one, two, three]
    assert {(m.parent_id, m.root_id) for m in outgoing.messages} == {("me", "first")}


def test_long_chain_has_its_handles(add: Any, outgoing: Outgoing) -> None:
    handle = chain([add.s(1, 1), *(add.s(1) for _ in range(3000))]).delay()
    length = 0
    while handle is not None:
        handle, length = handle.parent, length + 1
    assert length == 3001
    assert len(outgoing.messages[0].chain) == 3000
