"""Celery's receiver, state and ``celery events`` with greenq's events, and the other way round.

All that listens hears the whole run: a greenq worker, a Celery worker that sends each event as it
comes (gevent), and one that sends batches (prefork), each with a queue of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.events.state import State as CeleryState

from greenq import Greenq
from greenq.events.cluster_state import State
from tests.interop.cluster import WAIT_S, celery_member, environment, unlike, wait_for_nodes
from tests.interop.conftest import celery_client, greenq_client
from tests.servers import APPS, Process, Server, greenq_worker, valkey
from tests.support import wait_until

pytestmark = pytest.mark.interop

Event = dict[str, Any]

OURS, THEIRS, BATCHED = "ours@host", "theirs@host", "batched@host"
NODES = (OURS, THEIRS, BATCHED)


class Heard:
    """All events that one receiver has heard, in their order; written by its thread."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def note(self, event: Event) -> None:
        self.events.append(event)

    def of_task(self, task_id: str) -> list[Event]:
        return [event for event in list(self.events) if event.get("uuid") == task_id]

    def of_node(self, node: str, kind: str) -> list[Event]:
        return [
            event
            for event in list(self.events)
            if (event["hostname"], event["type"]) == (node, kind)
        ]

    def wait_for(self, task_id: str, kind: str, count: int = 1) -> list[Event]:
        """Wait until so many events of a kind were heard of a task, and return all of it."""

        def heard() -> bool:
            kinds = [event["type"] for event in self.of_task(task_id)]
            return kinds.count(kind) >= count

        try:
            wait_until(heard, WAIT_S)
        except AssertionError:
            raise AssertionError(f"no {kind}: {self.of_task(task_id)}") from None
        return self.of_task(task_id)


@dataclass(frozen=True)
class Audience:
    """Three workers and all who listen to them."""

    server: Server
    app: Celery
    greenq: Greenq
    by_celery: Heard
    by_greenq: Heard
    celery_state: CeleryState
    state: State
    dump: Process
    lines: Process

    def send(self, node: str, name: str, *args: Any, **options: Any) -> str:
        """Send a task to one worker and return its id."""
        task_id = options.pop("task_id", None) or uuid.uuid4().hex
        self.app.send_task(name, args, queue=node.partition("@")[0], task_id=task_id, **options)
        return task_id


@contextmanager
def listening(receiver: Any, capture: Callable[[], None]) -> Iterator[None]:
    """Have a receiver capture in a thread."""
    thread = threading.Thread(target=capture, daemon=True)
    thread.start()
    try:
        yield
    finally:
        receiver.should_stop = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


@contextmanager
def running(server: Server, log: Path, *command: str) -> Iterator[Process]:
    """Run a program that listens until it is stopped."""
    process = Process([sys.executable, "-m", *command], log, environment(server), APPS)
    try:
        yield process
    finally:
        process.kill()


def listeners(server: Server) -> int:
    return sum(int(each["psub"]) for each in server.client.client_list())


@pytest.fixture(scope="module")
def audience() -> Iterator[Audience]:
    by_celery, by_greenq = Heard(), Heard()
    with (
        tempfile.TemporaryDirectory(prefix="greenq-test-") as folder,
        valkey() as server,
        celery_client(server.url) as app,
        greenq_client(server.url) as greenq,
        app.connection_for_read() as connection,
    ):
        celery_state, state = app.events.State(), greenq.events.State()

        def celery_hears(event: Event) -> None:
            by_celery.note(dict(event))
            celery_state.event(event)

        def greenq_hears(event: Event) -> None:
            by_greenq.note(dict(event))
            state.event(event)

        theirs = app.events.Receiver(connection, handlers={"*": celery_hears})
        ours = greenq.events.Receiver({"*": greenq_hears})
        dump = Path(folder, "dump.log")
        lines = Path(folder, "lines.log")
        with (
            listening(theirs, lambda: theirs.capture(limit=None, timeout=None, wakeup=True)),
            listening(ours, ours.capture),
            running(server, dump, "celery", "-A", "celery_app", "events", "--dump") as dumping,
            running(server, lines, "greenq", "events", "--json", "-b", server.url) as writing,
        ):
            # Who listens later would miss that the workers come.
            wait_until(lambda: listeners(server) == 4, 30)
            with (
                greenq_worker(
                    server.url, "-n", OURS, "-Q", "ours", "-E", app="rejecting_greenq"
                ),
                celery_member(
                    server, "-n", THEIRS, "-Q", "theirs", "-E", app="rejecting_celery"
                ),
                celery_member(
                    server, "-n", BATCHED, "-Q", "batched", "-E", app="rejecting_celery",
                    pool="prefork", concurrency=2,
                ),
            ):  # fmt: skip
                wait_for_nodes(app, NODES)
                yield Audience(
                    server, app, greenq, by_celery, by_greenq, celery_state, state, dumping, writing
                )


ADDED = ["hostname", "utcoffset", "pid", "clock"]


def check_alike(ours: list[Event], theirs: list[Event]) -> None:
    """Compare events of the same kinds: their fields, the order of these, and their types."""
    assert [event["type"] for event in ours] == [event["type"] for event in theirs]
    for mine, their in zip(ours, theirs, strict=True):
        assert unlike(mine, their) == [], mine["type"]
        # The receiver adds two.
        assert set(mine) == set(their), mine["type"]
        assert mine["hostname"] == OURS


# --- greenq's events, heard by Celery -------------------------------------------------------------


def both(audience: Audience, name: str, *args: Any, last: str, **options: Any) -> list[list[Event]]:
    """Run a task on a greenq and a Celery worker and return what Celery's receiver heard."""
    ids = [audience.send(node, name, *args, **options) for node in (OURS, THEIRS)]
    return [audience.by_celery.wait_for(task_id, last) for task_id in ids]


def test_a_success_is_told_as_a_celery_worker_tells_it(audience: Audience) -> None:
    ours, theirs = both(
        audience, "shared.echo", 1, "ü", kwargs={"k": [None]}, last="task-succeeded"
    )
    check_alike(ours, theirs)
    received, started, succeeded = ours
    assert (received["name"], received["retries"]) == ("shared.echo", 0)
    assert (received["args"], received["kwargs"]) == (theirs[0]["args"], theirs[0]["kwargs"])
    assert (received["eta"], received["expires"]) == (None, None)
    assert (received["root_id"], received["parent_id"]) == (received["uuid"], None)
    assert succeeded["result"] == theirs[2]["result"]
    assert 0 <= succeeded["runtime"] < WAIT_S
    clocks = [event["clock"] for event in (received, started, succeeded)]
    assert clocks == sorted(set(clocks))
    times = [event["timestamp"] for event in (received, started, succeeded)]
    assert times == sorted(times)


def test_a_failure_is_told_as_a_celery_worker_tells_it(audience: Audience) -> None:
    ours, theirs = both(audience, "shared.fail_value", "bad", 7, last="task-failed")
    check_alike(ours, theirs)
    assert ours[-1]["exception"] == theirs[-1]["exception"] == "ValueError('bad', 7)"
    assert ours[-1]["traceback"].startswith("Traceback (most recent call last):")
    assert "fail_value" in ours[-1]["traceback"]


def test_a_retry_is_told_as_a_celery_worker_tells_it(audience: Audience) -> None:
    ours, theirs = both(audience, "shared.retry_until", 1, last="task-succeeded")
    # Celery's worker sends the next message first, and may take it before it tells of the retry.
    check_alike(*(sorted(events, key=lambda event: event["type"]) for events in (ours, theirs)))
    assert [event["type"] for event in ours] == [
        *("task-received", "task-started", "task-retried"),
        *("task-received", "task-started", "task-succeeded"),
    ]
    assert "ValueError('not yet')" in ours[2]["exception"]
    assert ours[3]["retries"] == 1
    assert ours[3]["eta"] is not None


def test_an_unknown_task_is_told_as_a_celery_worker_tells_it(audience: Audience) -> None:
    ours, theirs = both(audience, "nobody.knows", last="task-failed")
    check_alike(ours, theirs)
    assert ours[0]["exception"] == theirs[0]["exception"] == "NotRegistered('nobody.knows')"


def test_an_expired_task_is_told_as_a_celery_worker_tells_it(audience: Audience) -> None:
    ours, theirs = both(audience, "shared.add", 1, 1, expires=-1.0, last="task-revoked")
    check_alike(ours, theirs)
    for events in (ours, theirs):
        (revoked,) = events
        assert (revoked["terminated"], revoked["signum"], revoked["expired"]) == (False, None, True)


def test_a_revoked_task_is_told_as_a_celery_worker_tells_it(audience: Audience) -> None:
    ids = {node: uuid.uuid4().hex for node in (OURS, THEIRS)}
    revoke = audience.app.control.revoke
    revoke(list(ids.values()), destination=list(ids), reply=True, timeout=WAIT_S)
    for node, task_id in ids.items():
        audience.send(node, "shared.add", 1, 1, task_id=task_id)
    ours, theirs = (
        audience.by_celery.wait_for(task_id, "task-revoked") for task_id in ids.values()
    )
    check_alike(ours, theirs)
    for (revoked,) in (ours, theirs):
        assert (revoked["terminated"], revoked["signum"], revoked["expired"]) == (
            *(False, None, False),
        )


def test_a_terminated_task_is_told_as_a_celery_worker_tells_it(audience: Audience) -> None:
    ids = [audience.send(node, "shared.sleep", 60) for node in (OURS, THEIRS)]
    for task_id in ids:
        audience.by_celery.wait_for(task_id, "task-started")
    audience.app.control.terminate(ids, signal="SIGTERM")
    ours, theirs = (audience.by_celery.wait_for(task_id, "task-revoked") for task_id in ids)
    # A success that Celery's worker tells of after that is one of its faults.
    check_alike(ours, theirs[: len(ours)])
    assert [event["type"] for event in ours] == ["task-received", "task-started", "task-revoked"]
    assert ours[-1]["terminated"] is True
    assert ours[-1]["signum"] == theirs[2]["signum"] == 15


def test_a_rejected_task_is_told_as_a_celery_worker_tells_it(audience: Audience) -> None:
    ours, theirs = both(audience, "shared.reject", last="task-succeeded")
    check_alike(ours, theirs)
    assert [event["type"] for event in ours] == [
        *("task-received", "task-started", "task-rejected"),
        *("task-received", "task-started", "task-succeeded"),
    ]
    assert ours[2]["requeue"] is True


def test_an_eta_is_told_as_a_celery_worker_tells_it(audience: Audience) -> None:
    ours, theirs = both(audience, "shared.add", 1, 1, countdown=0.3, last="task-succeeded")
    check_alike(ours, theirs)
    assert len(ours[0]["eta"]) == len(theirs[0]["eta"])


@pytest.mark.parametrize("kind", ["worker-online", "worker-heartbeat"])
def test_signs_of_life_are_those_of_a_celery_worker(audience: Audience, kind: str) -> None:
    def found(node: str) -> list[Event]:
        # One that was asked for says less.
        events = audience.by_celery.of_node(node, kind)
        return [event for event in events if "loadavg" in event]

    wait_until(lambda: found(OURS) and found(THEIRS), WAIT_S)
    ours, theirs = found(OURS)[0], found(THEIRS)[0]
    assert set(ours) == set(theirs)
    assert unlike(ours, theirs) == []
    assert (ours["freq"], ours["sw_ident"], ours["sw_sys"]) == (2.0, "greenq", theirs["sw_sys"])


def test_good_bye_is_heard(audience: Audience) -> None:
    node = "short@host"
    with greenq_worker(audience.server.url, "-n", node, "-Q", "none"):
        wait_until(lambda: audience.by_celery.of_node(node, "worker-online"))
        assert audience.celery_state.workers[node].alive
    wait_until(lambda: audience.by_celery.of_node(node, "worker-offline"))
    wait_until(lambda: not audience.celery_state.workers[node].alive)
    wait_until(lambda: not audience.state.workers[node].alive)
    # And it beat once at least, for those who came after it.
    assert audience.by_celery.of_node(node, "worker-heartbeat")


def test_what_a_client_sends_is_told_as_a_celery_client_tells_it(audience: Audience) -> None:
    settings = {"task_send_sent_event": True}
    with (
        celery_client(audience.server.url, **settings) as theirs,
        greenq_client(audience.server.url, **settings) as ours,
    ):
        ids = [
            client.send_task(
                "shared.add", (1, 2), {}, queue="ours", expires=3600, task_id=uuid.uuid4().hex
            ).id
            for client in (ours, theirs)
        ]
        mine, their = (
            next(
                event
                for event in audience.by_celery.wait_for(task_id, "task-sent")
                if event["type"] == "task-sent"
            )
            for task_id in ids
        )
    assert set(mine) == set(their)
    assert unlike(mine, their) == []
    own = ("uuid", "root_id", "clock", "timestamp", "local_received", "expires")
    assert {k: v for k, v in mine.items() if k not in own} == {
        k: v for k, v in their.items() if k not in own
    }


# --- states, as both see them ---------------------------------------------------------------------


def outcome(task: Any) -> dict[str, Any]:
    """Return what both kinds of states tell of a task."""
    names = (
        *("uuid", "state", "name", "args", "kwargs", "result", "exception", "traceback"),
        *("retries", "eta", "expires", "runtime", "root_id", "parent_id", "ready"),
        *("sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected"),
    )
    return {name: getattr(task, name) for name in names} | {"worker": task.worker.hostname}


def test_both_states_know_the_same_of_the_workers_and_tasks_of_either(audience: Audience) -> None:
    kinds = [
        ("shared.add", (1, 2), "task-succeeded", "SUCCESS"),
        ("shared.fail_key", ("x",), "task-failed", "FAILURE"),
        ("shared.retry_late", (), "task-retried", "RETRY"),
        ("shared.reject", (), "task-succeeded", "SUCCESS"),
    ]
    states = {}
    for node in NODES:
        for name, args, last, state in kinds:
            task_id = audience.send(node, name, *args)
            states[task_id] = state
            audience.by_celery.wait_for(task_id, last)
            audience.by_greenq.wait_for(task_id, last)
    late = [task_id for task_id, state in states.items() if state == "RETRY"]
    audience.app.control.revoke(late)
    for task_id, state in states.items():
        theirs, ours = audience.celery_state.tasks[task_id], audience.state.tasks[task_id]
        if state != "RETRY":
            # Of those the worker tells more: it takes them again, and that they are revoked.
            assert (ours.state, theirs.state) == (state, state)
            assert outcome(ours) == outcome(theirs)
    alive = {worker.hostname for worker in audience.state.alive_workers()}
    assert alive >= set(NODES)
    assert alive == {worker.hostname for worker in audience.celery_state.alive_workers()}
    for node in NODES:
        ours, theirs = audience.state.workers[node], audience.celery_state.workers[node]
        fields = ("hostname", "pid", "sw_ident", "sw_ver", "sw_sys", "freq")
        assert [getattr(ours, name) for name in fields] == [
            getattr(theirs, name) for name in fields
        ]


@pytest.mark.parametrize("node", [THEIRS, BATCHED])
def test_greenq_hears_a_celery_worker_as_celery_does(audience: Audience, node: str) -> None:
    ids = [audience.send(node, "shared.add", number, 1) for number in range(30)]
    for task_id in ids:
        ours = audience.by_greenq.wait_for(task_id, "task-succeeded")
        theirs = audience.by_celery.wait_for(task_id, "task-succeeded")
        without = [
            {key: value for key, value in event.items() if key != "local_received"}
            for event in ours
        ]
        assert without == [
            {key: value for key, value in event.items() if key != "local_received"}
            for event in theirs
        ]


@pytest.mark.parametrize("name", ["ping", "registered", "active_queues", "revoked", "scheduled"])
def test_greenq_asks_a_prefork_worker_as_celery_does(audience: Audience, name: str) -> None:
    theirs, ours = (
        app.control.inspect(destination=[BATCHED], timeout=WAIT_S)
        for app in (audience.app, audience.greenq)
    )
    assert getattr(ours, name)() == getattr(theirs, name)()
    assert getattr(ours, name)().keys() == {BATCHED}


# --- the programs ---------------------------------------------------------------------------------


def test_celery_events_dump_shows_a_greenq_worker_s_events(audience: Audience) -> None:
    done = audience.send(OURS, "shared.add", 20, 22)
    failed = audience.send(OURS, "shared.fail_key", "why")
    for task_id, last in ((done, "task succeeded"), (failed, "task failed")):
        wait_until(
            lambda task_id=task_id, last=last: any(
                last in line and task_id in line for line in audience.dump.text.splitlines()
            ),
            WAIT_S,
        )
    text = audience.dump.text
    lines = text.splitlines()

    def line(kind: str, task_id: str) -> str:
        return next(each for each in lines if kind in each and task_id in each)

    assert line("task received", done).startswith(OURS)
    assert "shared.add" in line("task received", done)
    assert "(20, 22)" in line("task received", done)
    assert "task started" in line("task started", done)
    assert "result=42" in line("task succeeded", done)
    assert "runtime=" in line("task succeeded", done)
    assert "exception=KeyError('why')" in line("task failed", failed)
    beats = [each for each in lines if each.startswith(OURS)]
    assert any("started:" in each and "sw_ident=greenq" in each for each in beats)
    assert any("heartbeat:" in each and "loadavg=" in each for each in beats)


def test_greenq_events_shows_a_celery_worker_s_events(audience: Audience) -> None:
    ids = {node: audience.send(node, "shared.add", 20, 22) for node in NODES}

    def shown(node: str) -> list[str]:
        events = [json.loads(line) for line in audience.lines.text.splitlines()]
        return [event["type"] for event in events if event.get("uuid") == ids[node]]

    expected = ["task-received", "task-started", "task-succeeded"]
    wait_until(lambda: all(shown(node) == expected for node in NODES), WAIT_S)
