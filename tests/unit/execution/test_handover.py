"""What the end of a step sets in motion, as the one entry that is written."""

from __future__ import annotations

import base64
import json
from contextlib import nullcontext
from typing import Any

import pytest

from greenq.config.queues import Broadcast
from greenq.errors import Ignore
from greenq.protocol.envelope import mark_refused
from greenq.protocol.message import TaskMessage
from greenq.signals import after_task_publish
from greenq.transport.continuation import Continuation
from greenq.transport.fetch import Delivery
from greenq.transport.settle import MOVE, Settlement
from tests.unit.rig import Rig, wait_for


@pytest.fixture
def rig() -> Rig:
    rig = Rig(size=1)

    @rig.task("add")
    def add(*numbers: int) -> int:
        return sum(numbers)

    @rig.task("fail")
    def fail(*_args: object) -> None:
        raise ValueError("broken")

    return rig


def sig(task: str, task_id: str = "", *args: object, **options: Any) -> dict[str, Any]:
    if task_id:
        options["task_id"] = task_id
    return {
        "task": task, "args": list(args), "kwargs": {}, "options": options,
        "subtask_type": None, "immutable": False,
    }  # fmt: skip


def ended(rig: Rig, task: str, *args: object, **options: Any) -> tuple[Settlement, Continuation]:
    """Run one task, and return the entry of its end."""
    rig.give(task, "x", *args, **options)
    wait_for(lambda: any(entry.workflow is not None for entry in rig.outbox.entries))
    entry = rig.outbox.entries[-1]
    assert entry.workflow is not None
    return entry, entry.workflow


def sent(flow: Continuation) -> list[dict[str, Any]]:
    """Return what is pushed: headers, and the body's three parts."""
    found = []
    for push in flow.pushes:
        element = json.loads(push.text)
        args, kwargs, embed = json.loads(base64.b64decode(element["body"]))
        found.append({**element["headers"], "args": args, "kwargs": kwargs, "embed": embed})
    return found


def states(flow: Continuation) -> list[tuple[str, str]]:
    metas = [json.loads(state.payload) for state in flow.states]
    return [(meta["task_id"], meta["status"]) for meta in metas]


def values(flow: Continuation) -> list[tuple[str, Any]]:
    return [(part.member, json.loads(part.value)[2:]) for part in flow.parts]


def test_a_plain_task_has_no_workflow(rig: Rig) -> None:
    rig.give("add", "x", 1)
    wait_for(lambda: rig.outbox.acks() == ["rig:1"])
    assert rig.outbox.entries[-1].workflow is None


def test_the_next_step_gets_the_value_and_the_rest(rig: Rig) -> None:
    entry, flow = ended(rig, "add", 1, 2, chain=[sig("add", "z"), sig("add", "y", 10)])

    (next_step,) = sent(flow)
    assert (next_step["id"], next_step["args"]) == ("y", [3, 10])
    assert (next_step["parent_id"], next_step["root_id"]) == ("x", "x")
    assert [each["options"]["task_id"] for each in next_step["embed"]["chain"]] == ["z"]
    assert json.loads(entry.result.payload)["children"] == [[["y", None], None]]  # type: ignore[union-attr]


def test_every_link_is_sent(rig: Rig) -> None:
    _, flow = ended(rig, "add", 1, link=[sig("add", "l1"), sig("add", "l2", 5)])
    assert [(each["id"], each["args"]) for each in sent(flow)] == [("l1", [1]), ("l2", [1, 5])]


def test_a_header_task_adds_its_part(rig: Rig) -> None:
    body = sig("add", "b")
    _, flow = ended(rig, "add", 1, chord=body, group_id="g", group_index=4)
    assert values(flow) == [("x:4", ["SUCCESS", 1])]
    assert flow.parts[0].group == "celery-taskset-meta-g"
    assert flow.complete is not None


def test_a_failed_step_fails_all_that_follows(rig: Rig) -> None:
    tail = {"chord": sig("add", "b"), "group_id": "g", "group_index": 1}
    chain = [sig("add", "z", **tail), sig("add", "y")]
    _, flow = ended(rig, "fail", chain=chain, link_error=[sig("errback", "e")])

    assert states(flow) == [("y", "FAILURE"), ("z", "FAILURE")]
    assert {state.rule[0] for state in flow.states} == {"u"}
    assert values(flow)[0][0] == "z:1"
    assert values(flow)[0][1][0] == "FAILURE"
    assert [(each["id"], each["args"]) for each in sent(flow)] == [("e", ["x"])]


def test_an_errback_that_takes_the_error_is_called_here(rig: Rig) -> None:
    seen: list[Any] = []

    @rig.task("errback")
    def errback(request: Any, exc: BaseException, traceback: str) -> None:
        seen.append((request.id, str(exc), "broken" in traceback))

    _, flow = ended(rig, "fail", link_error=[sig("errback")])

    assert seen == [("x", "broken", True)]
    assert sent(flow) == []


def test_the_error_of_an_errback_is_contained(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    @rig.task("errback")
    def errback(request: Any, exc: BaseException, traceback: str) -> None:
        raise SystemExit(3)

    _, flow = ended(rig, "fail", link_error=[sig("errback"), sig("other", "o")])

    assert [each["id"] for each in sent(flow)] == ["o"]
    assert "errback errback of task x failed" in caplog.text


def test_a_value_that_the_next_step_cannot_get_fails_the_step(rig: Rig) -> None:
    @rig.task("bad", ignore_result=True)
    def bad() -> object:
        return object()

    _, flow = ended(rig, "bad", chain=[sig("add", "y")], ignore_result=True)

    assert sent(flow) == []
    assert states(flow) == [("y", "FAILURE")]


def test_what_follows_an_ignored_task_fails_without_errbacks(rig: Rig) -> None:
    @rig.task("ignored")
    def ignored() -> None:
        raise Ignore

    entry, flow = ended(
        rig, "ignored", chain=[sig("add", "y")], link_error=[sig("errback")],
        chord=sig("add", "b"), group_id="g", group_index=0,
    )  # fmt: skip

    assert entry.result is None
    assert states(flow) == [("y", "FAILURE")]
    assert values(flow)[0][1][0] == "FAILURE"
    assert sent(flow) == []


def test_a_revoked_step_fails_what_follows(rig: Rig) -> None:
    rig.tasks.revoke(["x"])
    _, flow = ended(
        rig, "add", chain=[sig("add", "y")], chord=sig("add", "b"), group_id="g", group_index=0,
        link_error=[sig("errback")],
    )  # fmt: skip

    assert states(flow) == [("y", "REVOKED")]
    assert values(flow)[0][1][0] == "REVOKED"
    assert sent(flow) == []


def test_an_unknown_task_fails_what_follows(rig: Rig) -> None:
    entry, flow = ended(rig, "unknown", chain=[sig("add", "y")], link_error=[sig("errback", "e")])

    assert entry.action == MOVE
    assert states(flow) == [("y", "FAILURE")]
    assert [each["args"] for each in sent(flow)] == [["x"]]


def test_a_retry_takes_everything_along(rig: Rig) -> None:
    @rig.task("again", bind=True)
    def again(self: Any) -> None:
        raise self.retry(countdown=0)

    entry, flow = ended(
        rig, "again", chain=[sig("add", "y")], chord=sig("add", "b"), group_id="g", group_index=2
    )

    assert entry.move is not None
    assert flow.is_empty()
    element = json.loads(entry.move.text)
    embed = json.loads(base64.b64decode(element["body"]))[2]
    assert embed["chain"][0]["options"]["task_id"] == "y"
    assert embed["chord"]["options"]["task_id"] == "b"
    assert (element["headers"]["group"], element["headers"]["group_index"]) == ("g", 2)


def test_a_replacement_has_the_id_and_all_that_follows(rig: Rig) -> None:
    @rig.task("replaced", bind=True)
    def replaced(self: Any) -> Any:
        return self.replace(sig("add", "", 7))

    entry, flow = ended(
        rig, "replaced", chain=[sig("add", "y")], chord=sig("add", "b"), group_id="g",
        group_index=2, link=[sig("add", "l")],
    )  # fmt: skip

    assert entry.result is None
    assert flow.parts == []
    (message,) = sent(flow)
    assert (message["id"], message["args"], message["group"]) == ("x", [7], "g")
    assert (message["group_index"], message["replaced_task_nesting"]) == (2, 1)
    embed = message["embed"]
    assert embed["chain"][0]["options"]["task_id"] == "y"
    assert embed["chord"]["options"]["task_id"] == "b"
    assert embed["callbacks"][0]["options"]["task_id"] == "l"


def test_a_task_may_add_another_to_its_chord(rig: Rig) -> None:
    @rig.task("grows", bind=True)
    def grows(self: Any) -> Any:
        return self.add_to_chord(sig("add", "n", 1)).id

    _, flow = ended(rig, "grows", chord=sig("add", "b"), group_id="g", group_index=0)

    assert [(each.group, each.task_id) for each in flow.adds] == [("celery-taskset-meta-g", "n")]
    (message,) = sent(flow)
    assert (message["id"], message["group"], message["group_index"]) == ("n", "g", None)
    assert message["embed"]["chord"]["options"]["task_id"] == "b"


def test_a_huge_fan_out_fails_the_step() -> None:
    rig = Rig(size=1, task_max_body_bytes=2000)

    @rig.task("add")
    def add(*numbers: int) -> int:
        return 1

    tasks = [sig("add", f"m{number}") for number in range(4)]
    for _ in range(4):
        tasks += tasks
    group = {**sig("celery.group"), "subtask_type": "group", "kwargs": {"tasks": tasks}}
    big = Rig(size=1)
    delivery = big.delivery("add", "x", chain=[group])
    rig.app.config.task.task_max_body_bytes  # noqa: B018  the worker's is smaller
    rig.tasks.admission._max_body_bytes = 1 << 20

    rig.tasks.admission.receive(delivery)
    wait_for(lambda: bool(rig.outbox.states()))

    assert rig.outbox.states() == [("x", "FAILURE")]
    assert "smaller groups" in str(rig.outbox.stored())


def test_links_of_stamped_tasks_are_stamped(rig: Rig) -> None:
    _, flow = ended(
        rig, "add", 1, link=[sig("add", "l")], stamped_headers=["customer"],
        stamps={"customer": "c1"},
    )  # fmt: skip
    (message,) = sent(flow)
    assert (message["stamps"], message["stamped_headers"]) == ({"customer": "c1"}, ["customer"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"chain": ["no signature"]}, "chain[0] is not a signature: it is str, not an object"),
        ({"callbacks": [{"task": "t"}]}, "callbacks[0] is not a signature: it has no args"),
        ({"chord": {**sig("b"), "subtask_type": "odd"}, "group": "g"}, "its subtask_type"),
    ],
)
def test_a_wrong_signature_makes_a_dead_letter(
    rig: Rig, options: dict[str, Any], reason: str
) -> None:

    message = TaskMessage(task="add", id="x", args=[1], **options)
    text = rig.app.producer.write(message, queue="celery", priority=0)["text"]
    rig.tasks.admission.receive(Delivery("rig:1", "celery", str(text).encode()))
    wait_for(lambda: bool(rig.outbox.moves()))

    (move,) = rig.outbox.moves()
    assert move.side.startswith("dead ")
    assert reason in json.loads(move.text)["reason"]
    assert rig.outbox.states() == [("x", "FAILURE")]


def test_a_message_marked_by_another_worker_fails_with_what_follows(rig: Rig) -> None:

    delivery = rig.delivery("add", "x", 1, chain=[sig("add", "y")])
    marked = mark_refused(delivery.raw, "its worker was lost")
    rig.tasks.admission.receive(delivery._replace(raw=marked.encode()))
    wait_for(lambda: bool(rig.outbox.moves()))

    (entry,) = rig.outbox.entries
    assert entry.workflow is not None
    assert states(entry.workflow) == [("y", "FAILURE")]
    letter = json.loads(rig.outbox.moves()[0].text)
    assert letter["reason"] == "its worker was lost"
    assert b"refused" not in base64.b64decode(letter["raw"])


def test_a_successor_of_a_broadcast_queue_is_published() -> None:
    rig = Rig(size=1, task_queues=["celery", Broadcast("news")])
    rig.task("add")(lambda *numbers: sum(numbers))

    _, flow = ended(rig, "add", 1, link=[sig("add", "l", queue="news")])

    assert [(push.key, push.side) for push in flow.pushes] == [("/0.news/celery", "all")]


def test_a_successor_goes_to_each_queue_of_its_exchange(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = rig.app.transport.broker
    monkeypatch.setattr(broker, "bound_queues", lambda *_: ["q1", "q2"])
    monkeypatch.setattr(type(broker.client), "pooled", lambda *_a, **_k: nullcontext())

    _, flow = ended(rig, "add", 1, link=[sig("add", "l", exchange="topics", routing_key="a.b")])

    assert [push.key for push in flow.pushes] == ["q1", "q2"]


def test_receivers_are_told_of_successors_after_they_are_written(rig: Rig) -> None:
    told: list[str] = []

    def after(headers: dict[str, Any], **_: Any) -> None:
        told.append(headers["id"])

    after_task_publish.connect(after)
    try:
        _, flow = ended(rig, "add", 1, link=[sig("add", "l")])
        assert told == []
        for call in flow.written:
            call()
        assert told == ["l"]
    finally:
        after_task_publish.disconnect(after)


def test_members_that_celery_froze_count_for_the_chord_they_name(rig: Rig) -> None:
    outer = sig("add", "outer")
    place = {"group_id": "g-outer", "chord": outer}
    members = [sig("add", f"m{at}", **place, group_index=at) for at in range(2)]
    # Celery writes the id of the group's own header into the group itself.
    body = {
        **sig("celery.group", "gid", group_id="g-inner", chord=outer),
        "subtask_type": "group", "kwargs": {"tasks": members},
    }  # fmt: skip

    _, flow = ended(rig, "add", 1, link=[body])

    assert [each["group"] for each in sent(flow)] == ["g-outer", "g-outer"]


def test_the_structure_of_a_header_is_stored_before_it_is_sent(rig: Rig) -> None:
    ends = {**sig("celery.group"), "subtask_type": "group",
            "kwargs": {"tasks": [sig("add", "a"), sig("add", "b")]}}  # fmt: skip
    chain = {**sig("celery.chain"), "subtask_type": "chain",
             "kwargs": {"tasks": [sig("add", "first"), ends]}}  # fmt: skip
    header = {**sig("celery.group", "g"), "subtask_type": "group",
              "kwargs": {"tasks": [sig("add", "c"), chain]}}  # fmt: skip
    whole = {**sig("celery.chord"), "subtask_type": "chord",
             "kwargs": {"kwargs": {}, "header": header, "body": sig("add", "body")}}  # fmt: skip

    _, flow = ended(rig, "add", 1, link=[whole])

    (state,) = flow.states
    own, members = json.loads(state.payload)["result"]
    assert (state.key, own) == ("celery-taskset-meta-g", ["g", None])
    assert members[0] == [["c", None], None]
    assert [each[0][0] for each in members[1][1]] == ["a", "b"]


@pytest.mark.parametrize("has_group", [True, False])
def test_a_header_message_with_an_unreadable_body_is_a_failed_part(
    rig: Rig, has_group: bool
) -> None:
    place = {"group_id": "g", "group_index": 3} if has_group else {}
    delivery = rig.delivery("add", "x", 1, chord=sig("add", "b"), **place)
    raw = delivery.raw.replace(b'"application/json"', b'"application/unheard-of"')
    rig.tasks.admission.receive(delivery._replace(raw=raw))
    wait_for(lambda: bool(rig.outbox.moves()))

    (entry,) = rig.outbox.entries
    assert entry.move is not None
    assert entry.move.side.startswith("dead ")
    if has_group:
        assert entry.workflow is not None
        assert [(member, value[0]) for member, value in values(entry.workflow)] == [
            ("x:3", "FAILURE")
        ]
    else:
        assert entry.workflow is None
