"""What a signature sends, for every shape: the right values, each id once, and no more bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from greenq.canvas import plan
from greenq.canvas.primitives import chain, chord, chunks, group, xmap, xstarmap
from greenq.canvas.signature import Signature, signature
from greenq.protocol import envelope
from tests.unit.canvas.shapes import SHAPES, Cluster, count, evaluate, values_of
from tests.vectors import load

UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def task(name: str, *args: Any, **options: Any) -> Signature:
    return Signature(name, args, options=options)


def sendable(shape: Any) -> bool:
    """Tell whether there is something to send: a chain without steps has no end."""
    with suppress(ValueError):
        return bool(plan.plan(shape))
    return False


@given(SHAPES, st.integers(0, 1000), st.booleans())
def test_every_shape_returns_what_it_says(shape: Any, seed: int, is_frozen: bool) -> None:
    assume(sendable(shape))
    cluster = Cluster(seed)
    sig = plan.freeze(shape)[0] if is_frozen else plan.plain(shape)
    made = plan.plan(json.loads(json.dumps(sig)), ("first",))
    cluster.send(made)
    cluster.run()

    assert values_of(made.handle, cluster.values) == evaluate(shape, "first")
    assert not cluster.waits


@given(SHAPES)
def test_frozen_signature_has_an_id_for_each_task_and_no_copies(shape: Any) -> None:
    assume(sendable(shape))
    frozen, handle = plan.freeze(shape)
    text = json.dumps(frozen)

    never = [each.task_id for each in plan.ids_of(frozen)]
    assert len(set(never)) == len(never) <= count(shape)
    assert len(text) <= 800 * (count(shape) + text.count('"subtask_type": "') + 1)
    # Frozen again, after travelling, it is the same.
    again, same = plan.freeze(json.loads(text))
    assert json.dumps(again) == text
    assert json.dumps(same) == json.dumps(handle)


@given(SHAPES)
def test_what_never_runs_is_what_would_have_run(shape: Any) -> None:
    assume(sendable(shape))
    frozen = plan.freeze(shape)[0]
    cluster = Cluster()
    cluster.send(plan.plan(frozen))
    cluster.run()

    assert {each.task_id for each in plan.ids_of(frozen)} == set(cluster.values)


# --- as Celery writes it -------------------------------------------------------------------------


def wire(name: str, *args: Any, **options: Any) -> Signature:
    return task(f"wireapp.{name}", *args, **options)


def header_of_three() -> list[Signature]:
    return [wire("add", n, n) for n in range(3)]


def stamped() -> list[Signature]:
    steps = wire("add", 1, 1) | wire("whoami").set(immutable=True)
    steps.stamp(trace="abc", many=["x", "y"])
    members = group(wire("add", 1, 1), wire("whoami"))
    members.stamp(mtask_id="m-1")
    return [steps, members]


CAPTURED: dict[str, Callable[[], list[Any]]] = {
    "chain3": lambda: [
        chain(wire("add", 2, 2), wire("add", 4), wire("mul", 10), link_error=[wire("on_err_old")])
    ],
    "chord3": lambda: [chord(header_of_three(), wire("xsum"))],
    "group3": lambda: [group(header_of_three())],
    "chain_group_middle": lambda: [
        wire("add", 1, 1) | group(wire("add", 10), wire("add", 20)) | wire("xsum") | wire("mul", 2)
    ],
    "map_starmap_chunks": lambda: [
        xmap(wire("xsum"), [[1, 2], [3]]),
        xstarmap(wire("add"), [[1, 2], [3, 4]]),
        chunks(wire("add"), [[n, n] for n in range(5)], 2),
    ],
    "stamping": stamped,
}


@pytest.mark.parametrize("capture", CAPTURED)
def test_messages_are_those_of_celery(capture: str) -> None:
    theirs = [Wrapped.read(command) for command in load.commands(capture) if is_task(command)]
    ours: list[Wrapped] = []
    for sig in CAPTURED[capture]():
        cluster = OneWorker()
        cluster.send(plan.plan(sig))
        cluster.run()
        ours += [Wrapped.of(json.loads(text)) for text in cluster.sent]

    assert Renaming().over(ours) == Renaming().over(theirs)


class OneWorker(Cluster):
    """Runs the tasks of the captures one after another."""

    def take(self) -> str:
        return self.pending.pop(0)

    def call(self, message: Mapping[str, Any]) -> Any:
        return WIREAPP[message["task"]](*message["args"], **message["kwargs"])


def is_task(command: load.Command) -> bool:
    return command.args[0] == b"LPUSH" and b'"task": "' in command.args[2]


WIREAPP: dict[str, Callable[..., Any]] = {
    "wireapp.add": lambda x, y: x + y,
    "wireapp.mul": lambda x, y: x * y,
    "wireapp.xsum": sum,
    "wireapp.whoami": lambda: None,
    "celery.map": lambda task, it: None,
    "celery.starmap": lambda task, it: None,
}


class Wrapped(NamedTuple):
    """What counts of a message."""

    task: str
    id: str
    group: str | None
    group_index: int | None
    parent_id: str | None
    root_id: str
    stamps: Any
    args: list[Any]
    kwargs: dict[str, Any]
    embed: dict[str, Any]

    @classmethod
    def read(cls, command: load.Command) -> Wrapped:
        """Read a captured message."""
        wrapped = envelope.unwrap(command.args[2])
        names = ("task", "id", "group", "group_index", "parent_id", "root_id", "stamps")
        return cls(*map(wrapped.headers.get, names), *json.loads(wrapped.body))

    @classmethod
    def of(cls, call: dict[str, Any]) -> Wrapped:
        """Take a call as it would be written."""
        options = call["options"]
        embed = {
            "callbacks": options.get("link"),
            "errbacks": options.get("link_error"),
            "chain": options.get("chain"),
            "chord": options.get("chord"),
        }
        return cls(
            call["task"],
            options["task_id"],
            options.get("group_id"),
            options.get("group_index"),
            options.get("parent_id"),
            options.get("root_id") or options["task_id"],
            options.get("stamps") or {},
            call["args"],
            call["kwargs"],
            embed,
        )


class Renaming:
    """Gives ids the numbers in which they occur, and drops what means nothing."""

    # What Celery adds, and the order of names.
    LEFT_OUT = frozenset({"reply_to", "priority", "stamped_headers"})

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def over(self, messages: Sequence[Wrapped]) -> list[dict[str, Any]]:
        """Return messages with short names for ids."""
        return [self._renamed(each._asdict()) for each in messages]

    def _renamed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: self._renamed(item)
                for name, item in sorted(value.items())
                if item not in (None, []) and name not in self.LEFT_OUT
            }
        if isinstance(value, list):
            return [self._renamed(item) for item in value]
        if isinstance(value, str) and UUID.fullmatch(value):
            return self._names.setdefault(value, f"id {len(self._names)}")
        return value


def captured_signatures() -> dict[str, Any]:
    path = load.CAPTURES / "signature_json.jsonl"
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {each["name"]: each["value"] for each in records if each.get("mark") == "signature"}


def with_groups(value: Any) -> Any:
    """Write headers as groups: Celery does so when it freezes them."""
    if isinstance(value, list):
        return [with_groups(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {name: with_groups(item) for name, item in value.items()}
    if isinstance(made.get("header"), list):
        made["header"] = json.loads(json.dumps(group([]))) | {"kwargs": {"tasks": made["header"]}}
    return made


@pytest.mark.parametrize("name", captured_signatures())
def test_signature_of_celery_is_read_and_written_as_it_is(name: str) -> None:
    data = with_groups(captured_signatures()[name])
    assert json.loads(json.dumps(signature(data))) == data
    assert json.loads(json.dumps(signature(data).clone())) == data


# --- what follows --------------------------------------------------------------------------------


def test_stamps_of_a_task_go_on_to_what_follows_unless_that_has_its_own() -> None:
    (call,) = plan.follow(
        task("b", user="own", stamped_headers=["user"]),
        1,
        parent_id="p",
        root_id="r",
        stamps={"user": "theirs", "trace": "t"},
    ).calls
    assert call.options["stamps"] == {"user": "own", "trace": "t"}
    assert (call.options["parent_id"], call.options["root_id"]) == ("p", "r")


def test_replacement_keeps_the_place_of_what_it_replaces() -> None:
    body, rest = task("body"), task("rest", task_id="rest")
    made = plan.plan(
        plan.gathered(group(task("a"), task("b"))),
        task_id="replaced",
        group_id="g",
        group_index=4,
        chord=body,
        chain=[rest],
    )
    first, _second = made.calls
    collecting = first.options["chord"]
    assert collecting["options"]["task_id"] == "replaced"
    assert collecting["options"]["group_id"] == "g"
    assert collecting["options"]["group_index"] == 4
    assert collecting["options"]["chord"] == body
    assert [each["options"]["task_id"] for each in collecting["options"]["chain"]] == ["rest"]
    assert made.handle[0][0] == "replaced"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"task": 1}, '"task" is not a name'),
        ({"task": "a", "args": 1}, '"args" is not a list'),
        ({"task": "a", "args": [], "kwargs": []}, '"kwargs" is not an object'),
        ({"task": "a", "args": [], "kwargs": {}, "options": 1}, '"options" is not an object'),
        (dict(group([])) | {"kwargs": {}}, '"tasks" is not a list'),
        (dict(chord([], task("a"))) | {"kwargs": {"header": []}}, "without a body"),
        (dict(group([])) | {"kwargs": {"tasks": [3]}}, "it is not an object"),
        (dict(task("a")) | {"subtask_type": "loop"}, "unknown type"),
    ],
)
def test_what_is_no_signature_is_refused(data: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan.plan(data)


@pytest.mark.parametrize("depth", [3, 6])
def test_nested_chords_grow_with_their_tasks(depth: int) -> None:
    def nested(level: int) -> Any:
        if not level:
            return task("a")
        return group(nested(level - 1), task("b")) | task("c") | group(task("d"), task("e"))

    sig = nested(depth) | task("end")
    size = len(json.dumps(plan.freeze(sig)[0]))
    assert size <= 700 * count(sig)
