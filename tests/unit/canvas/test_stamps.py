"""Stamps reach every part of a workflow."""

from __future__ import annotations

from typing import Any

import pytest

from greenq import Greenq, StampingVisitor, chord, group


@pytest.fixture
def add(app: Greenq) -> Any:
    return app.tasks["add"]


def test_stamps_reach_every_task_and_callback(add: Any) -> None:
    linked = add.s(1, 1)
    callback, errback = linked.link(add.s(2)), linked.link_error(add.s(3))
    body = add.s(5)
    sig = linked | chord([add.s(4)], body)
    members = sig.tasks[1].tasks.tasks
    assert sig.stamp(user="u", tags=["a"]) is sig
    for each in (linked, callback, errback, members[0], body):
        assert each.options["user"] == "u"
        assert each.options["tags"] == ["a"]
        assert each.options["stamped_headers"] == ["user", "tags"]


def test_stamp_is_replaced_or_appended(add: Any) -> None:
    sig = add.s().stamp(user="a")
    sig.stamp(user="b", other=1)
    assert sig.options == {"user": "b", "other": 1, "stamped_headers": ["user", "other"]}
    sig.stamp(append_stamps=True, user="c")
    assert sig.options["user"] == ["b", "c"]
    sig.stamp(append_stamps=True, user=["b", "c"])
    assert sig.options["user"] == ["b", "c"]


class Noting(StampingVisitor):
    """Stamps each part with the way that led to it."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"own": sig.args[0], "noise": 1, "stamped_headers": ["own"]}

    def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any]:
        return {"in_chain": True}

    def on_chain_end(self, chain: Any, **headers: Any) -> None:
        self.ended.append(f"chain with {sorted(headers)}")

    def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any]:
        return {"in_group": len(group)}

    def on_group_end(self, group: Any, **headers: Any) -> None:
        self.ended.append("group")

    def on_chord_body(self, sig: Any, **header: Any) -> dict[str, Any]:
        return {"is_body": True}

    def on_callback(self, callback: Any, **header: Any) -> dict[str, Any]:
        return {"is_callback": True}

    def on_errback(self, errback: Any, **header: Any) -> dict[str, Any]:
        return {"is_errback": True}


def stamps(sig: Any) -> set[str]:
    return set(sig.options["stamped_headers"])


def test_visitor_stamps_each_part(add: Any) -> None:
    first = add.s("first")
    callback, errback = first.link(add.s("callback")), first.link_error(add.s("errback"))
    header, body, member = add.s("header"), add.s("body"), add.s("member")
    visitor = Noting()
    (first | chord([header], body)).stamp(visitor)
    group(member).stamp(visitor)

    assert first.options["own"] == "first"
    assert "noise" not in first.options
    assert stamps(first) == {"own", "in_chain"}
    assert stamps(callback) == {"own", "in_chain", "is_callback"}
    assert stamps(errback) == {"own", "in_chain", "is_errback"}
    assert stamps(header) == {"own", "in_chain", "in_group"}
    assert stamps(body) == {"own", "in_chain", "is_body"}
    assert stamps(member) == {"own", "in_group"}
    assert visitor.ended == ["group", "chain with ['in_chain']", "group"]


def test_visitor_must_say_how_tasks_are_stamped(add: Any) -> None:
    with pytest.raises(NotImplementedError):
        add.s().stamp(StampingVisitor())
