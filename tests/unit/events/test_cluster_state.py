"""What is kept in mind of events: right, bounded, and unmoved by wrong ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from greenq import states
from greenq.cli.events import Lines
from greenq.cli.events_live import EventsDisplay
from greenq.events.cluster_state import ObservedTask, ObservedWorker, State
from greenq.protocol.event import read_events
from greenq.protocol.serialize import accepted
from tests.vectors import load

NOW = 1_900_000_000.0
JSON = accepted(["json"])


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Have the clock stand; the test moves it."""
    moment = [NOW]
    monkeypatch.setattr("greenq.events.receiver.time.time", lambda: moment[0])
    return moment


def event(kind: str, **fields: Any) -> dict[str, Any]:
    common = {"hostname": "w@h", "utcoffset": 0, "pid": 7, "clock": 1, "timestamp": NOW}
    return {**common, "local_received": NOW, **fields, "type": kind}


def told(kind: str, clock: int, **fields: Any) -> dict[str, Any]:
    """Return an event of one task; time goes on with the clock."""
    return event(kind, uuid="id", clock=clock, timestamp=NOW + clock, **fields)


def recorded(*captures: str) -> list[dict[str, Any]]:
    published = [
        command
        for capture in captures
        for command in load.commands(capture)
        if command.args[0] == b"PUBLISH" and b"/0.celeryev/" in command.args[1]
    ]
    events = [each for command in published for each in read_events(command.args[2], JSON)]
    return [each | {"local_received": each["timestamp"]} for each in events]


RECEIVED = {
    **{"name": "proj.add", "args": "(1, 2)", "kwargs": "{}", "retries": 0},
    **{"root_id": "root", "parent_id": None, "eta": None, "expires": None},
}
LIFE = (
    told("task-sent", 0, hostname="gen1@h", queue="q", routing_key="q", exchange="", **RECEIVED),
    told("task-received", 2, **RECEIVED),
    told("task-started", 3),
    told("task-succeeded", 4, result="3", runtime=0.5),
)


# --- tasks ----------------------------------------------------------------------------------------


def test_task_has_what_its_events_tell() -> None:
    state = State()
    for each in LIFE:
        state.event(each)
    (task,) = state.tasks.values()
    assert task.as_dict() == {
        **dict.fromkeys(("failed", "retried", "revoked", "rejected", "exception", "traceback")),
        **RECEIVED,
        **{"uuid": "id", "state": "SUCCESS", "result": "3", "runtime": 0.5},
        **{"sent": NOW, "received": NOW + 2, "started": NOW + 3, "succeeded": NOW + 4},
        **{"worker": "w@h", "client": "gen1@h", "timestamp": NOW + 4, "clock": 4},
        **{"queue": "q", "routing_key": "q", "exchange": ""},
    }
    assert (task.id, task.ready, task.origin) == ("id", True, "w@h.None")
    assert task.info(("args", "eta"), extra=("name",)) == {"args": "(1, 2)", "name": "proj.add"}
    assert task.info()["result"] == "3"


@pytest.mark.parametrize("order", list(permutations(LIFE)), ids=range(24))
def test_task_comes_to_the_same_in_any_order(order: tuple[dict[str, Any], ...]) -> None:
    inorder, shuffled = State(), State()
    for each, other in zip(LIFE, order, strict=True):
        inorder.event(each)
        shuffled.event(other)
    assert shuffled.tasks["id"].as_dict() == inorder.tasks["id"].as_dict()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("task-sent", "PENDING"),
        ("task-received", "RECEIVED"),
        ("task-started", "STARTED"),
        ("task-succeeded", "SUCCESS"),
        ("task-failed", "FAILURE"),
        ("task-retried", "RETRY"),
        ("task-revoked", "REVOKED"),
        ("task-rejected", "REJECTED"),
        ("task-progress", "PROGRESS"),
    ],
)
def test_state_follows_from_the_events_type(kind: str, expected: str) -> None:
    state = State()
    state.event(told(kind, 1))
    assert state.tasks["id"].state == expected


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("task-succeeded", "task-received"), "SUCCESS"),
        (("task-failed", "task-started"), "FAILURE"),
        (("task-revoked", "task-started"), "REVOKED"),
        (("task-progress", "task-started"), "PROGRESS"),
        (("task-started", "task-progress"), "PROGRESS"),
        # A retry begins anew.
        (("task-started", "task-retried"), "RETRY"),
        (("task-retried", "task-received"), "RECEIVED"),
        (("task-received", "task-retried", "task-started"), "STARTED"),
        (("task-retried", "task-retried"), "RETRY"),
        (("task-retried", "task-sent"), "RETRY"),
    ],
)
def test_stronger_state_stays(kinds: tuple[str, ...], expected: str) -> None:
    state = State()
    for clock, kind in enumerate(kinds, start=1):
        state.event(told(kind, clock))
    assert state.tasks["id"].state == expected


def test_retry_that_is_heard_of_late_does_not_undo_the_end() -> None:
    state = State()
    state.event(told("task-succeeded", 9))
    state.event(told("task-retried", 5))
    assert state.tasks["id"].state == "SUCCESS"
    assert state.tasks["id"].retried == NOW + 5
    state.event(told("task-retried", 10))
    assert state.tasks["id"].state == "RETRY"


def test_recorded_retry_ends_well() -> None:
    state = State()
    for each in recorded("events_life"):
        state.event(each)
    flaky = [task for task in state.tasks.values() if task.name == "wireapp.flaky"]
    assert [(task.state, task.retries, task.result) for task in flaky] == [("SUCCESS", 1, "1")]
    assert state.ignored == 0


def test_state_is_that_of_celery_for_all_that_was_recorded() -> None:
    celery_state = pytest.importorskip("celery.events.state").State()
    captures = ("events_life", "events_life_prefork", "events_receiver", "mingle_gossip")
    state = State()
    for each in recorded(*captures):
        state.event(dict(each))
        celery_state.event(dict(each))
    assert len(state.tasks) > 8
    assert set(state.workers) == set(celery_state.workers)
    assert (state.event_count, state.task_count) == (
        celery_state.event_count,
        celery_state.task_count,
    )
    same = (
        *("name", "state", "received", "sent", "started", "succeeded", "failed", "retried"),
        *("args", "kwargs", "retries", "result", "exception", "traceback", "runtime"),
        *("root_id", "parent_id", "client", "routing_key", "timestamp"),
    )
    for uuid, task in state.tasks.items():
        theirs = celery_state.tasks[uuid]
        assert {name: getattr(task, name) for name in same} == {
            name: getattr(theirs, name) for name in same
        }
        assert task.worker.hostname == theirs.worker.hostname
    assert {uuid for uuid, _ in state.tasks_by_timestamp(5)} <= set(celery_state.tasks)


# --- workers --------------------------------------------------------------------------------------


def test_worker_has_what_its_heartbeat_tells(now: list[float]) -> None:
    state = State()
    fields = {
        **{"freq": 2.0, "active": 3, "processed": 9, "loadavg": [1, 0.5, 0.25]},
        **{"sw_ident": "greenq", "sw_ver": "0.5", "sw_sys": "Linux"},
    }
    blocked = {"at": NOW, "for_s": 4.2, "by": "task[id]", "where": "tasks.py:3"}
    state.event(event("worker-heartbeat", clock=5, **fields, blocked=blocked))
    worker = state.workers["w@h"]
    assert {name: getattr(worker, name) for name in fields} == fields
    assert (worker.id, worker.clock, worker.blocked) == ("w@h.7", 5, blocked)
    state.event(event("worker-heartbeat", clock=4, **fields))
    assert (worker.clock, worker.blocked) == (5, None)


def test_worker_lives_for_two_of_its_intervals(now: list[float]) -> None:
    state = State()
    state.event(event("worker-heartbeat", freq=5))
    worker = state.workers["w@h"]
    now[0] = NOW + 9.9
    assert (worker.alive, worker.status_string) == (True, "ONLINE")
    assert list(state.alive_workers()) == [worker]
    now[0] = NOW + 10
    assert (worker.alive, worker.status_string) == (False, "OFFLINE")
    assert list(state.alive_workers()) == []
    state.event(event("task-started", uuid="id", local_received=NOW + 10))
    assert worker.alive


def test_worker_is_dead_when_it_said_good_bye(now: list[float]) -> None:
    state = State()
    state.event(event("worker-online", freq=2.0))
    state.event(event("worker-offline", freq=2.0))
    worker = state.workers["w@h"]
    assert (worker.alive, worker.heartbeat_expires) == (False, 0.0)
    # Told at the same moment, heard after it.
    state.event(event("task-succeeded", uuid="id"))
    assert not worker.alive
    state.event(event("worker-online", freq=2.0))
    assert worker.alive


def test_clocks_of_others_do_not_decide_who_lives(now: list[float]) -> None:
    state = State()
    state.event(event("worker-heartbeat", freq=2.0, timestamp=NOW - 7200))
    assert state.workers["w@h"].alive


def test_heartbeats_are_few_and_in_order(now: list[float]) -> None:
    state = State()
    for at in (3, 1, 2, 6, 5, 4):
        state.event(event("worker-heartbeat", local_received=NOW + at))
    assert state.workers["w@h"].heartbeats == [NOW + at for at in (3, 4, 5, 6)]


# --- the state as a whole -------------------------------------------------------------------------


def test_event_says_what_it_was_about() -> None:
    state = State()
    assert state.event(told("task-started", 1)) == ((ObservedTask("id"), True), "started")
    assert state.event(told("task-succeeded", 2)) == ((ObservedTask("id"), False), "succeeded")
    assert state.event(event("worker-online")) == ((ObservedWorker("w@h"), False), "online")
    assert state.event(event("beat-tick")) is None


def test_callback_gets_every_event() -> None:
    heard = []
    state = State(lambda state, each: heard.append((state.event_count, each["type"])))
    state.event(event("worker-online"))
    state.event(event("beat-tick"))
    assert heard == [(1, "worker-online"), (2, "beat-tick")]
    assert (state.event_count, state.ignored) == (2, 1)


def test_only_so_many_are_remembered() -> None:
    state = State(max_tasks_in_memory=3, max_workers_in_memory=2)
    for number in range(4):
        # The first task and the first worker stay in the news.
        state.event(event("task-started", uuid="0", hostname="w0"))
        state.event(event("task-received", uuid=str(number), hostname=f"w{number}", name="n"))
    assert list(state.tasks) == ["2", "0", "3"]
    assert list(state.workers) == ["w0", "w3"]
    assert {task.uuid for task in state.tasks_by_type["n"]} == {"2", "0", "3"}


def test_tasks_are_found_by_time_type_and_worker() -> None:
    state = State()
    for number, name, node in ((3, "b", "w1"), (1, "a", "w1"), (2, "a", "w2")):
        state.event(
            event("task-received", uuid=f"t{number}", clock=number, name=name, hostname=node)
        )
    state.event(event("task-sent", uuid="t4", clock=4, hostname="gen1@h"))

    def ids(pairs: Iterator[tuple[str, ObservedTask]]) -> list[str]:
        return [uuid for uuid, _ in pairs]

    assert ids(state.tasks_by_timestamp()) == ["t4", "t3", "t2", "t1"]
    assert ids(state.tasks_by_time(limit=2, reverse=False)) == ["t1", "t2"]
    assert ids(state.itertasks(limit=2)) == ["t3", "t1"]
    assert ids(state.tasks_by_type("a")) == ["t2", "t1"]
    assert ids(state.tasks_by_worker("w1", limit=1)) == ["t3"]
    assert state.tasks_by_type["a"] == {ObservedTask("t1"), ObservedTask("t2")}
    assert state.tasks_by_type["unknown"] == set()
    assert sorted(state.tasks_by_worker) == ["w1", "w2"]
    assert len(state.tasks_by_type) == 2
    assert state.task_types() == ["a", "b"]


def test_state_is_cleared() -> None:
    state = State()
    state.event(event("task-succeeded", uuid="done"))
    state.event(event("task-started", uuid="running"))
    state.clear_tasks()
    assert list(state.tasks) == ["running"]
    assert state.freeze_while(lambda: len(state.tasks), clear_after=True) == 1
    assert (list(state.tasks), state.workers, state.event_count) == (["running"], {}, 0)
    state.clear(ready=False)
    assert state.tasks == {}
    assert repr(state) == "<State: events=0 tasks=0>"


# --- what anybody may send ------------------------------------------------------------------------

ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(
    [f"task-{each}" for each in ("sent", "received", "started", "succeeded", "retried", "x", "")]
    + [f"worker-{each}" for each in ("online", "heartbeat", "offline", "elect", "")]
    + ["", "-", "task", "beat-x"]
)
NAMES = [
    *("type", "hostname", "utcoffset", "pid", "clock", "timestamp", "local_received", "uuid"),
    *("name", "args", "kwargs", "eta", "retries", "result", "runtime", "exception", "state"),
    *("freq", "active", "processed", "loadavg", "sw_ident", "blocked", "parent_id", "worker"),
]
WRONG = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, ODD))
EVENTS = st.lists(
    st.builds(
        lambda kind, wrong: event(kind, uuid="id") | wrong,
        KINDS,
        WRONG,
    ),
    max_size=4,
)


def test_wrong_fields_are_not_taken_over() -> None:
    state = State()
    state.event(event("worker-online", freq=0, active="3", loadavg=[1, 2], processed=-1))
    state.event(event("worker-heartbeat", freq=None, blocked={"for_s": "long"}))
    worker = state.workers["w@h"]
    assert (worker.freq, worker.active, worker.loadavg, worker.processed, worker.blocked) == (
        *(60.0, None, None),
        *(None, None),
    )
    state.event(told("task-succeeded", 1, result=3, runtime=True, name=["n"], state="FAILURE"))
    task = state.tasks["id"]
    assert (task.result, task.runtime, task.name, task.state) == (None, None, None, "SUCCESS")


@given(EVENTS)
def test_no_event_breaks_the_state(events: list[dict[str, Any]]) -> None:
    state = State()
    for each in events:
        found = state.event(each)
        assert (found is None) == (not isinstance(found, tuple))
    assert state.event_count == len(events)
    for task in state.tasks.values():
        assert task.state == states.PENDING or task.timestamp is not None
        assert isinstance(task.name, str | None)
        assert isinstance(task.runtime, int | float | None)
    for worker in state.workers.values():
        assert worker.freq > 0
        assert isinstance(worker.alive, bool)
    assert len(list(state.tasks_by_timestamp())) == len(state.tasks)


# --- how they are shown ---------------------------------------------------------------------------


def test_line_is_that_of_celerys_dump() -> None:
    lines = Lines()
    assert [lines.line(each) for each in LIFE[1:]] == [
        "w@h [2030-03-17 17:46:42+00:00] task received: proj.add(id) args=(1, 2) kwargs={}, "
        "clock=2, eta=None, expires=None, local_received=1900000000.0, parent_id=None, pid=7, "
        "retries=0, root_id=root, utcoffset=0",
        "w@h [2030-03-17 17:46:43+00:00] task started: proj.add(id) args=(1, 2) kwargs={}, "
        "clock=3, local_received=1900000000.0, pid=7, utcoffset=0",
        "w@h [2030-03-17 17:46:44+00:00] task succeeded: proj.add(id) args=(1, 2) kwargs={}, "
        "clock=4, local_received=1900000000.0, pid=7, result=3, runtime=0.5, utcoffset=0",
    ]
    assert lines.line(event("worker-heartbeat")).startswith(
        "w@h [2030-03-17 17:46:40+00:00] heartbeat: clock=1"
    )


def test_line_names_a_task_that_nothing_is_known_of_by_its_id() -> None:
    assert "task started: id, clock=3" in Lines().line(LIFE[2])


def test_json_line_is_the_event(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(as_json=True)
    lines.show(LIFE[3])
    lines.flush()
    assert json.loads(capsys.readouterr().out) == LIFE[3]


@given(EVENTS)
def test_any_event_that_was_read_is_one_printable_line(events: list[dict[str, Any]]) -> None:
    lines = Lines()
    for each in filter(is_readable, events):
        assert lines.line(each).isprintable()


HOSTILE = {
    **{"uuid": "id\x1b[2J", "name": "name\r", "args": "args\n", "kwargs": "\ud800"},
    **{"hostname": "w\x07@h", "result": "\x1b]0;title\x07\n", "extra\n": "\u202e"},
}


@pytest.mark.parametrize("kind", ["task-received", "task-succeeded", "task-\x1b", "worker-\n"])
def test_nothing_in_a_line_moves_the_cursor(kind: str) -> None:
    assert Lines().line(event(kind, **HOSTILE)).isprintable()


@pytest.mark.parametrize("kind", ["task-received", "task-succeeded", "task-\x1b", "worker-\n"])
def test_nothing_in_a_table_moves_the_cursor(kind: str) -> None:
    state = State()
    state.event(event(kind, **HOSTILE, sw_ident="\x1b[2J"))
    assert drawn(state).replace("\n", "").isprintable()


def is_readable(each: dict[str, Any]) -> bool:
    """Tell whether `read_events` would let an event through."""
    return (
        isinstance(each["type"], str)
        and isinstance(each["hostname"], str)
        and type(each["timestamp"]) in (int, float)
        and abs(each["timestamp"]) < 1e11
    )


def drawn(state: State, height: int = 24) -> str:
    console = Console(file=StringIO(), width=140, height=height, force_terminal=False)
    console.print(EventsDisplay(state, "redis://h/0", console).picture())
    return console.file.getvalue()


def test_table_shows_workers_and_tasks(now: list[float]) -> None:
    state = State()
    state.event(event("worker-heartbeat", active=3, processed=1234, sw_ident="greenq", freq=2.0))
    state.event(event("worker-offline", hostname="gone@h"))
    for each in LIFE:
        state.event(each)
    text = drawn(state)
    for shown in ("w@h", "online", "1,234", "gone@h", "offline", "SUCCESS", "proj.add", "0.500 s"):
        assert shown in text
    assert "redis://h/0  1 of 2 workers online, 6 events, 1 tasks" in text


def test_table_says_that_a_worker_is_blocked_or_silent(now: list[float]) -> None:
    state = State()
    state.event(event("worker-heartbeat", freq=2.0, blocked={"for_s": 75.0}))
    assert "blocked 1m" in drawn(state)
    assert "enable_events" in drawn(state)
    now[0] = NOW + 65
    assert "silent 1m" in drawn(state)


def test_table_fits_the_terminal() -> None:
    state = State()
    for number in range(50):
        state.event(
            event("task-started", uuid=f"id-{number:02}", clock=number, hostname=f"{number}")
        )
    text = drawn(state, height=20)
    assert len(text.splitlines()) < 20
    assert "id-49" in text
    assert "id-00" not in text


@settings(max_examples=30)
@given(EVENTS)
def test_no_event_breaks_the_table(events: list[dict[str, Any]]) -> None:
    state = State()
    for each in events:
        state.event(each)
    assert "events" in drawn(state)
