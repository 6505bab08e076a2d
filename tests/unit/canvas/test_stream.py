"""A group from a generator is planned as one from a list."""

from __future__ import annotations

from typing import Any

from greenq.canvas import plan
from greenq.canvas.primitives import chord, group
from greenq.canvas.signature import Signature
from greenq.canvas.stream import GroupStream, bare


def task(name: str, *args: Any) -> Signature:
    return Signature(name, args)


def test_stream_plans_what_a_group_plans() -> None:
    members = [task("a", 1), task("b") | task("c"), chord([task("d")], task("e")), task("a", 2)]
    stream = GroupStream(bare(group()), None, ("first",), {}, {"queue": "q"})
    calls = [call for call, _chords in stream.calls(iter(members))]
    whole = plan.plan(group(members), ("first",), queue="q")

    def shown(call: plan.Call) -> tuple[Any, ...]:
        options = {name: value for name, value in call.options.items() if not name.endswith("id")}
        return call.task, [*call.args], call.kwargs, options.keys(), options.get("group_index")

    assert list(map(shown, calls)) == list(map(shown, whole.calls))
    assert (stream.count, stream.size) == (4, 4)
    assert not stream.special
