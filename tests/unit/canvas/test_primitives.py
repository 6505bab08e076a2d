"""Chains, groups, chords and maps: how they are put together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from greenq import Greenq, chain, chord, group, signature, xmap
from greenq.canvas import plan
from tests.unit.canvas.outgoing import Outgoing


@pytest.fixture
def add(app: Greenq) -> Any:
    return app.tasks["add"]


@pytest.fixture
def total(app: Greenq) -> Any:
    return app.tasks["total"]


def test_chain_is_what_the_operator_makes(add: Any) -> None:
    sig = add.s(1, 1) | add.s(2) | (add.s(3) | add.s(4))
    assert sig == chain(add.s(1, 1), add.s(2), add.s(3), add.s(4))
    assert sig == chain([add.s(1, 1), add.s(2), add.s(3), add.s(4)])
    assert sig == chain(add.s(n) if n > 1 else add.s(1, 1) for n in range(1, 5))
    sig |= add.s(5)
    assert len(sig) == 5
    assert repr(add.s(1, 1) | add.s(2)) == "add(1, 1) | add(2)"


def test_chain_with_callbacks_keeps_them_to_itself(add: Any) -> None:
    inner = add.s(1, 1) | add.s(2)
    inner.on_error(add.s(9))
    outer = inner | add.s(3)
    assert [type(step).__name__ for step in outer.tasks] == ["chain", "Signature"]
    steps = plan.steps(outer)
    assert [bool(step["options"].get("link_error")) for step in steps] == [True, True, False]
    assert [step.options for step in inner.unchain_tasks()] == [{"link_error": [add.s(9)]}] * 2


def test_group_and_body_are_a_chord(add: Any, total: Any) -> None:
    members = group(add.s(1, 1), add.s(2, 2))
    assert members | total.s() == chord(members, total.s())
    assert chord([add.s(1, 1), add.s(2, 2)], total.s()) == chord(members, total.s())
    assert members | group() is members
    assert type(members | (total.s() | add.s(1))) is chain
    assert len(members) == 2
    assert bool(group())


def test_group_takes_members_in_every_form(add: Any) -> None:
    one = add.s(1, 1)
    assert group(one, one) == group([one, one]) == group(group(one, one)) == group((one, one))
    assert group(dict(one)) == group(one)
    assert group(one, app=None).apply_async
    assert repr(group()) == "group(<empty>)"
    assert repr(group(one)) == "group([add(1, 1)])"


def test_members_of_a_generator_are_read_when_they_are_needed(add: Any) -> None:
    made: list[int] = []

    def members() -> Any:
        for n in range(3):
            made.append(n)
            yield add.s(n, n)

    sig = group(members())
    assert repr(sig) == "group(<generator>)"
    assert sig.options == {}
    assert not made
    text = json.dumps(sig)
    assert made == [0, 1, 2]
    assert signature(json.loads(text)) == sig == group(add.s(n, n) for n in range(3))
    assert dict(group(add.s(n, n) for n in range(2)))["kwargs"]["tasks"] == [
        add.s(0, 0),
        add.s(1, 1),
    ]


def test_members_of_a_generator_are_sent_once(add: Any, outgoing: Outgoing) -> None:
    sig = group(add.s(n, n) for n in range(3))
    handle = sig.delay()
    assert [message.id for message in outgoing.messages] == [each.id for each in handle.results]
    with pytest.raises(ValueError, match="has been used up: make the group from a list"):
        sig.delay()


def test_composed_signatures_have_the_app_of_their_parts(app: Greenq, add: Any) -> None:
    by_name = signature("add", (1, 1))
    for sig in (chain(by_name, add.s(1)), group(by_name, add.s()), chord([by_name], add.s())):
        assert sig.own_app() is app
    assert chain(by_name).own_app() is None
    assert chain(by_name).app is app
    assert add.map([1]).own_app() is add.chunks([], 1).own_app() is app


def test_group_is_skewed(add: Any) -> None:
    sig = group(add.s(n, n) for n in range(4)).skew(start=1, stop=3)
    assert [member.options["countdown"] for member in sig.tasks] == [1, 2, 3, 3]


def test_links_of_a_group(add: Any) -> None:
    sig = group(add.s(1, 1), add.s(2, 2))
    sig.link(add.s(3))
    sig.on_error(add.s(4))
    first, second = sig.tasks
    assert first.options == {"link": [add.si(3)], "link_error": [add.s(4)]}
    assert second.options == {"link_error": [add.s(4)]}
    sig.set_immutable(True)
    assert first.immutable
    assert second.immutable


def test_callbacks_for_all_members_are_those_of_a_body(add: Any, outgoing: Outgoing) -> None:
    sig = group(add.s(1, 1), add.s(2, 2)).on_error(add.s(4), once=True).on_done(add.s(5))
    frozen = sig.freeze()
    assert signature(json.loads(json.dumps(sig))) == sig
    handle = sig.delay()
    assert handle.id == frozen.id
    assert [each.id for each in handle.results] == [message.id for message in outgoing.messages]
    body: Any = outgoing.messages[0].chord
    assert (body["task"], body["kwargs"]) == ("celery.accumulate", {"index": 0})
    assert body["options"]["link"] == json.loads(json.dumps([add.si(5)]))
    assert body["options"]["link_error"] == json.loads(json.dumps([add.s(4), add.si(5)]))
    assert outgoing.notes[0] == ("seal", [2])


def test_streamed_group_may_have_callbacks_for_all(add: Any, outgoing: Outgoing) -> None:
    handle = group(add.s(n, n) for n in range(450)).on_done(add.s(5)).delay()
    assert len(handle) == 450
    assert outgoing.notes[1] == ("open", "celery.accumulate", None)
    assert outgoing.messages[449].chord["task"] == "celery.accumulate"


def test_links_of_a_chord_are_those_of_its_body(app: Greenq, add: Any, total: Any) -> None:
    sig = chord([add.s(1, 1)], total.s())
    sig.link(add.s(1))
    sig.link_error(add.s(2))
    assert sig.body.options == {"link": [add.s(1)], "link_error": [add.s(2)]}
    assert sig.tasks.tasks[0].options == {}
    app.conf.task_allow_error_cb_on_chord_header = True
    sig.link_error(add.s(3))
    assert sig.tasks.tasks[0].options == {"link_error": [add.s(3)]}


def test_chord_is_called_with_its_body(add: Any, total: Any, outgoing: Outgoing) -> None:
    header = chord([add.s(1, 1)])
    assert header(total.s()).id == outgoing.messages[0].chord["options"]["task_id"]
    assert header.body is None


def test_maps_are_one_task_and_chunks_are_several(add: Any, outgoing: Outgoing) -> None:
    assert repr(add.map([1, 2])) == "[add(x) for x in [1, 2]]"
    assert repr(add.starmap([(1, 2)])) == "[add(*x) for x in [(1, 2)]]"
    assert xmap(add.s(), [1]) == add.map([1])
    add.chunks(zip(range(5), range(5), strict=True), 2)()
    assert [len(message.kwargs["it"]) for message in outgoing.messages] == [2, 2, 1]
    assert {message.task for message in outgoing.messages} == {"celery.starmap"}
    for sig in (add.map([1]), add.starmap([[1, 1]]), add.chunks([[1, 1]], 1)):
        assert signature(json.loads(json.dumps(sig))) == sig
        assert type(sig.clone()) is type(sig)


def test_long_chain_is_frozen(add: Any) -> None:
    handle = chain(add.s(1, 1), *(add.s(n) for n in range(2000))).freeze()
    assert sum(1 for _ in handle.ancestors()) == 2000
