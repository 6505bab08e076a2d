"""Signatures: calls that are kept, completed, copied, linked and sent."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from greenq import Greenq, Signature, chord, group, maybe_signature, signature
from greenq.errors import NotRegistered
from greenq.protocol.serialize import accepted, dumps, loads
from tests.unit.canvas.outgoing import Outgoing


@pytest.fixture
def add(app: Greenq) -> Any:
    return app.tasks["add"]


def test_has_exactly_six_keys(add: Any) -> None:
    assert dict(add.s(1, y=2)) == {
        "task": "add",
        "args": (1,),
        "kwargs": {"y": 2},
        "options": {},
        "subtask_type": None,
        "immutable": False,
    }
    assert add.si(1)["immutable"] is True
    assert add.signature((1,), {"y": 2}, countdown=3).options == {"countdown": 3}
    assert add.subtask((1,), immutable=True).immutable


def test_election_is_held_for_the_call_under_the_id_of_its_handle(
    add: Any, app: Greenq, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    monkeypatch.setattr(app.control, "election", lambda *given: held.append(given))
    handle = add.s(1, 2).election()
    ((task_id, topic, action),) = held
    assert (task_id, topic, action["task"], action["args"]) == (handle.id, "task", "add", (1, 2))
    assert action["options"]["task_id"] == handle.id


def test_route_name_is_refused_and_not_dropped(add: Any) -> None:
    with pytest.raises(TypeError, match="name the queue instead"):
        add.s(1, 2).apply_async(route_name="other")


def test_partial_is_completed_from_the_front_and_immutable_is_not(
    add: Any, outgoing: Outgoing
) -> None:
    add.s(2).delay(1)
    add.s(y=2).apply_async((1,), {"y": 3})
    add.si(5, 6).delay(1)
    assert outgoing.calls == [("add", [1, 2]), ("add", [1]), ("add", [5, 6])]
    assert outgoing.messages[1].kwargs == {"y": 3}


def test_is_sent_with_its_options_unless_others_are_given(add: Any, outgoing: Outgoing) -> None:
    sig = add.s(1, 2).set(queue="slow", task_id="i")
    sig.link(add.s(3))
    sig.stamp(user="u")
    assert sig.apply_async(queue="fast", shadow=None).id == "i"
    (message,) = outgoing.messages
    assert outgoing.notes == ["push to fast"]
    assert message.callbacks == [
        {
            "task": "add", "args": [3], "kwargs": {}, "subtask_type": None, "immutable": False,
            "options": {"user": "u", "stamped_headers": ["user"]},
        }
    ]  # fmt: skip
    assert (message.stamps, message.stamped_headers) == ({"user": "u"}, ["user"])


def test_arguments_are_checked_where_it_is_sent(add: Any) -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        add.s(1).delay()


def test_is_called_here(add: Any) -> None:
    assert add.s(2)(1) == 3
    with pytest.raises(NotRegistered):
        signature("unknown")()


def test_task_is_sent_by_name_alone(app: Greenq, outgoing: Outgoing) -> None:
    app.signature("elsewhere", (1,)).delay(0)
    assert outgoing.calls == [("elsewhere", [0, 1])]


@pytest.mark.parametrize("copied", ["json", "pickle", "clone", "deepcopy", "signature"])
def test_copy_equals_it_and_shares_nothing(add: Any, copied: str) -> None:
    sig = add.s(1, [2]).set(queue="q")
    sig.link(add.s(3) | group(add.s(4)))
    text = json.dumps(sig)
    made = {
        "json": lambda: signature(json.loads(text)),
        "pickle": lambda: signature(pickle.loads(pickle.dumps(sig))),
        "clone": sig.clone,
        "deepcopy": lambda: copy.deepcopy(sig),
        "signature": lambda: signature(sig),
    }[copied]()
    assert isinstance(made, Signature)
    assert made == sig
    made.link(add.s(5))
    made.set(queue="other")
    made.options["link"][0]["options"]["x"] = 1
    assert json.dumps(sig) == text


@pytest.mark.parametrize("serializer", ["json", "msgpack", "pickle", "yaml"])
def test_every_serializer_writes_it_as_plain_data(add: Any, serializer: str) -> None:
    sig = add.s(1, 1) | chord(iter([add.s(2)]), add.s(3))
    data, content_type, encoding = dumps([sig], serializer)
    (found,) = loads(data, content_type, encoding, accepted([serializer]))
    assert type(found) is dict
    assert type(found["kwargs"]["tasks"][1]) is dict
    assert json.dumps(found, sort_keys=True) == json.dumps(sig, sort_keys=True)
    assert b"greenq" not in data


def test_clone_takes_more_arguments_even_if_immutable(add: Any) -> None:
    sig = add.si(2).clone((1,), {"z": 3}, queue="q")
    assert (sig.args, sig.kwargs, sig.options) == ((1, 2), {"z": 3}, {"queue": "q"})
    assert sig.replace(args=(7,)).args == (7,)


def test_links_are_kept_once(add: Any) -> None:
    sig = add.s()
    callback = add.s(1)
    assert sig.link(callback) is callback
    sig.link(dict(add.s(1)))
    assert sig.on_error(add.s(2)) is sig
    assert sig.link_error(add.s(3)) == add.s(3)
    assert sig.options == {"link": [add.s(1)], "link_error": [add.s(2), add.s(3)]}
    assert sig.flatten_links() == [sig, callback]


def test_frozen_it_has_its_id_and_handle(add: Any, outgoing: Outgoing) -> None:
    sig = add.s(1, 2)
    handle = sig.freeze()
    assert sig.id == handle.id == sig.freeze().id
    assert sig.delay().id == outgoing.messages[0].id == handle.id
    assert add.s().freeze("mine", group_id="g", group_index=2).id == "mine"


def test_nothing_is_no_signature(add: Any) -> None:
    assert maybe_signature(None) is None
    sig = add.s()
    assert maybe_signature(sig) is sig
    assert maybe_signature(sig, clone=True) is not sig
    assert maybe_signature({"task": "add"}) == sig


def test_is_shown_as_a_call(add: Any) -> None:
    assert repr(add.s(1, y="a")) == "add(1, y='a')"
    assert add.s(2).reprcall(1) == "add(1, 2)"


def test_name_of_a_task_is_needed() -> None:
    with pytest.raises(TypeError, match="needs a task or its name, not 3"):
        Signature(3)


def test_classes_of_ones_own_are_found_by_their_type(app: Greenq) -> None:
    @Signature.register_type("twice")
    class Twice(Signature):
        @classmethod
        def from_dict(cls, data: Any, app: Any = None) -> Signature:
            return cls(data, app=app)

    try:
        assert type(signature({"task": "x", "subtask_type": "twice"})) is Twice
    finally:
        del Signature.TYPES["twice"]


@pytest.mark.parametrize("method", ["apply_async", "apply", "clone"])
@pytest.mark.parametrize("make", [lambda sig: sig, lambda sig: group([sig]), lambda sig: sig | sig])
def test_one_value_is_not_a_list_of_arguments(add: Any, method: str, make: Any) -> None:
    sig = make(add.s(1))
    for wrong in (5, "abc"):
        with pytest.raises(TypeError, match=f"{method} takes the positional arguments as one list"):
            getattr(sig, method)(wrong)
    with pytest.raises(TypeError, match=f"{method} takes the keyword arguments as a dict, not 5"):
        getattr(sig, method)((), 5)


def test_a_stamp_has_a_name(add: Any) -> None:
    with pytest.raises(TypeError, match=r"takes stamps by name, as in stamp\(customer=17\)"):
        add.s(1).stamp(5)
