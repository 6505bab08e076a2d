"""Celery and greenq workers as one cluster: mingle, gossip, elections, and one queue for both."""

from __future__ import annotations

import re
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery

from greenq.protocol.clock import LamportClock
from greenq.protocol.event import EventWriter, read_events
from tests.interop.cluster import WAIT_S, celery_member, wait_for_nodes
from tests.interop.conftest import celery_client
from tests.servers import Process, Server, celery_worker, greenq_worker, valkey
from tests.support import wait_until

pytestmark = pytest.mark.interop

OURS, THEIRS = "ours@host", "theirs@host"
FAR = 1_000_000

# Nobody takes from this queue: its length is how many tasks were sent by the elected.
ELECTED = "elected"


@contextmanager
def worker_of(kind: str, server: Server, node: str, *options: str) -> Iterator[Process]:
    """Run a worker of either kind that takes from a queue named as it is."""
    options = ("-n", node, "-Q", node.partition("@")[0], *options)
    with ExitStack() as stack:
        if kind == "greenq":
            yield stack.enter_context(greenq_worker(server.url, *options))
        else:
            yield stack.enter_context(celery_member(server, *options))


def ask(app: Any, node: str, command: str, **arguments: Any) -> Any:
    """Return one worker's answer."""
    replies = app.control.broadcast(
        command, arguments=arguments, destination=[node], reply=True, timeout=WAIT_S
    )
    assert len(replies) == 1, (command, node)
    return replies[0][node]


def publish(server: Server, kind: str, node: str, clock: int, **fields: Any) -> None:
    """Publish an event of a worker with a clock just beyond this."""
    lamport = LamportClock()
    lamport.adjust(clock)
    writer = EventWriter(node, lamport)
    channel = f"/0.celeryev/{kind.replace('-', '.')}"
    assert server.client.publish(channel, writer.write(writer.stamp(kind, fields)))


# --- mingle ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [("greenq", "celery"), ("celery", "greenq")])
def test_who_starts_learns_what_the_others_know(first: str, second: str) -> None:
    task_id = uuid.uuid4().hex
    with (
        valkey() as server,
        celery_client(server.url) as app,
        worker_of(first, server, "first@host"),
    ):
        # Given a worker that knows of a revoked task and whose clock is far ahead
        wait_for_nodes(app, ["first@host"])
        publish(server, "worker-heartbeat", "gone@host", FAR)
        wait_until(lambda: ask(app, "first@host", "clock")["clock"] > FAR)
        ask(app, "first@host", "revoke", task_id=[task_id])
        # When another one starts, which hears of it by mingling alone
        with worker_of(second, server, "second@host", "--without-gossip") as worker:
            wait_for_nodes(app, ["second@host"])
            # Then it knows the same
            assert ask(app, "second@host", "clock")["clock"] > FAR
            assert ask(app, "second@host", "revoked") == [task_id]
            # And the task does not run there
            options = {"queue": "second"}
            revoked = app.send_task("shared.add", (1, 2), task_id=task_id, **options)
            assert app.send_task("shared.add", (1, 3), **options).get(timeout=WAIT_S) == 4
            assert revoked.state == "REVOKED"
            assert "Discarding revoked task" in worker.text
            assert f"shared.add[{task_id}] succeeded" not in worker.text


# --- gossip ---------------------------------------------------------------------------------------


def test_each_kind_notices_that_the_other_is_lost() -> None:
    quick = ("--heartbeat-interval", "1")
    with (
        valkey() as server,
        celery_client(server.url) as app,
        worker_of("greenq", server, OURS) as ours,
        worker_of("celery", server, THEIRS, "-l", "DEBUG") as theirs,
        worker_of("greenq", server, "lost1@host", *quick) as lost_greenq,
        worker_of("celery", server, "lost2@host", *quick) as lost_celery,
    ):
        nodes = [OURS, THEIRS, "lost1@host", "lost2@host"]
        wait_for_nodes(app, nodes)
        for node in nodes[1:]:
            ours.wait_text(f"{node} joined", WAIT_S)
        for node in (OURS, *nodes[2:]):
            theirs.wait_text(f"{node} joined the party", WAIT_S)
        # The clock of one goes over to the other with its heartbeats: Celery's workers do not
        # take it from what is published here.
        publish(server, "worker-elect-ack", THEIRS, FAR, id="no election")
        wait_until(lambda: ask(app, THEIRS, "clock")["clock"] > FAR)

        lost_greenq.kill()
        lost_celery.kill()
        for alive in (ours, theirs):
            for node in nodes[2:]:
                alive.wait_text(f"missed heartbeat from {node}", WAIT_S)
        for alive, node in ((ours, THEIRS), (theirs, OURS)):
            assert f"missed heartbeat from {node}" not in alive.text


def test_heartbeats_are_listened_to_while_there_is_a_celery_worker() -> None:
    nodes = [f"ours{number}@host" for number in range(4)]
    beat = "/0.celeryev/worker.heartbeat"
    with valkey() as server, celery_client(server.url) as app, ExitStack() as stack:
        workers = [stack.enter_context(worker_of("greenq", server, node)) for node in nodes]
        wait_for_nodes(app, nodes)

        def listeners() -> int:
            # Celery's workers listen to a pattern, which does not count here.
            return sum(count for _, count in server.client.pubsub_numsub(beat))

        wait_until(lambda: listeners() == 0, WAIT_S)
        with worker_of("celery", server, THEIRS) as theirs:
            wait_until(lambda: listeners() == len(nodes), WAIT_S)
            # Another one starts beside it, which hears of it only by its heartbeats.
            late = stack.enter_context(worker_of("greenq", server, "late@host", "--without-mingle"))
            for worker in (*workers, late):
                worker.wait_text(f"{THEIRS} joined", WAIT_S)
            wait_until(lambda: listeners() == len(nodes) + 1, WAIT_S)
            theirs.kill()
            for worker in (*workers, late):
                worker.wait_text(f"missed heartbeat from {THEIRS}", WAIT_S)


# --- elections ------------------------------------------------------------------------------------


def action(app: Celery) -> dict[str, Any]:
    """Return what the winner has to send."""
    signature: dict[str, Any] = dict(app.signature("shared.add", (1, 2), queue=ELECTED))
    return signature


def decided(worker: Process, election: str) -> str | None:
    """Return whom a greenq worker has seen win, None while it is undecided."""
    for line in worker.text.splitlines():
        before, found, _ = line.partition(f" was elected for task {election}")
        if found:
            return before.rpartition(" ")[2]
    return None


@dataclass(frozen=True)
class Voters:
    """Three greenq workers."""

    server: Server
    app: Celery
    workers: dict[str, Process]

    def wait_decided(self, election: str) -> str:
        """Wait until all have decided and return the winner: one, whom all others know."""
        wait_until(
            lambda: all(decided(worker, election) for worker in self.workers.values()), WAIT_S
        )
        seen = {
            node if decided(worker, election) == "worker" else str(decided(worker, election))
            for node, worker in self.workers.items()
        }
        assert len(seen) == 1
        assert sum(decided(w, election) == "worker" for w in self.workers.values()) == 1
        return seen.pop()

    def sent(self) -> int:
        return int(self.server.client.llen(ELECTED))


@pytest.fixture(scope="module")
def voters() -> Iterator[Voters]:
    nodes = [f"v{number}@host" for number in (1, 2, 3)]
    with valkey() as server, celery_client(server.url) as app, ExitStack() as stack:
        workers = {node: stack.enter_context(worker_of("greenq", server, node)) for node in nodes}
        wait_for_nodes(app, nodes)
        for node, worker in workers.items():
            for other in set(nodes) - {node}:
                worker.wait_text(f"{other} joined", WAIT_S)
        yield Voters(server, app, workers)


@pytest.fixture
def fresh(voters: Voters) -> Voters:
    voters.server.client.delete(ELECTED)
    return voters


def test_of_several_greenq_workers_one_is_elected_each_time(fresh: Voters) -> None:
    elections = [uuid.uuid4().hex for _ in range(10)]
    for election in elections:
        fresh.app.control.election(election, "task", action(fresh.app))
    for election in elections:
        fresh.wait_decided(election)
    wait_until(lambda: fresh.sent() >= 10)
    assert fresh.sent() == 10


@pytest.mark.parametrize("stopped", [["v1@host"], ["v2@host"], ["v1@host", "v3@host"]], ids=str)
def test_workers_that_stand_still_for_a_second_do_not_make_two_leaders(
    fresh: Voters, stopped: Sequence[str]
) -> None:
    election = uuid.uuid4().hex
    stopped_at_s = time.monotonic()
    for node in stopped:
        fresh.workers[node].send_signal(signal.SIGSTOP)
    try:
        fresh.app.control.election(election, "task", action(fresh.app))
        wait_until(lambda: time.monotonic() > stopped_at_s + 1.0)
    finally:
        for node in stopped:
            fresh.workers[node].send_signal(signal.SIGCONT)
    fresh.wait_decided(election)
    wait_until(lambda: fresh.sent() >= 1)
    assert fresh.sent() == 1


def test_a_greenq_worker_alone_is_elected() -> None:
    election = uuid.uuid4().hex
    with (
        valkey() as server,
        celery_client(server.url) as app,
        worker_of("greenq", server, OURS) as worker,
    ):
        wait_for_nodes(app, [OURS])
        app.control.election(election, "task", action(app))
        wait_until(lambda: server.client.llen(ELECTED) == 1)
        worker.wait_text(f"this worker was elected for task {election}")
        assert ask(app, OURS, "ping") == {"ok": "pong"}


@dataclass(frozen=True)
class Mixed:
    """A greenq and a Celery worker whose clocks stay apart: both beat seldom."""

    server: Server
    app: Celery
    ours: Process
    theirs: Process

    def clock(self, node: str) -> int:
        clock: int = ask(self.app, node, "clock")["clock"]
        return clock

    def bring_forward(self, node: str) -> None:
        """Bring one worker's clock beyond the other's."""
        ahead = max(self.clock(OURS), self.clock(THEIRS))
        if node == THEIRS:
            # It follows heartbeats.
            publish(self.server, "worker-heartbeat", OURS, ahead + FAR, freq=60.0)
        else:
            # A Celery worker's clock does not follow events of elections.
            publish(self.server, "worker-elect-ack", THEIRS, ahead + FAR, id="no election")
        wait_until(lambda: self.clock(node) > ahead + FAR)


@pytest.fixture(scope="module")
def mixed() -> Iterator[Mixed]:
    seldom = ("--heartbeat-interval", "60")
    with (
        valkey() as server,
        celery_client(server.url) as app,
        worker_of("greenq", server, OURS, *seldom) as ours,
        worker_of("celery", server, THEIRS, "-l", "DEBUG", *seldom) as theirs,
    ):
        wait_for_nodes(app, [OURS, THEIRS])
        ours.wait_text(f"{THEIRS} joined", WAIT_S)
        app.control.heartbeat()
        theirs.wait_text(f"{OURS} joined the party", WAIT_S)
        yield Mixed(server, app, ours, theirs)


def acknowledged(pubsub: Any, election: str, seen: set[str]) -> set[str]:
    """Add to `seen` who has acknowledged a vote since the last call."""
    while (message := pubsub.get_message()) is not None:
        (event,) = read_events(message["data"], frozenset({"application/json"}))
        if event["id"] == election:
            seen.add(event["hostname"])
    return seen


# A Celery worker that has seen one vote only when it counts enough acknowledgements ends. So that
# this does not happen, the other one votes first here, and Celery's only when it has heard that.
@pytest.mark.parametrize("winner", [OURS, THEIRS])
def test_in_a_mixed_pair_both_elect_the_same(mixed: Mixed, winner: str) -> None:
    election = uuid.uuid4().hex
    mixed.server.client.delete(ELECTED)
    # The vote with the lower clock wins, and ours is cast first.
    if winner == THEIRS:
        mixed.bring_forward(OURS)
    arguments = {"id": election, "topic": "task", "action": action(mixed.app)}
    broadcast = mixed.app.control.broadcast
    with mixed.server.client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.psubscribe("/0.celeryev/worker.elect.ack")
        wait_until(lambda: mixed.server.client.pubsub_numpat() >= 2)
        broadcast("election", arguments, destination=[OURS])
        seen: set[str] = set()
        wait_until(lambda: THEIRS in acknowledged(pubsub, election, seen))
        if winner == OURS:
            mixed.bring_forward(THEIRS)
        broadcast("election", arguments, destination=[THEIRS])
    wait_until(lambda: decided(mixed.ours, election), WAIT_S)
    assert decided(mixed.ours, election) == ("worker" if winner == OURS else THEIRS)
    mixed.theirs.wait_text(
        f"I won the election '{election}'"
        if winner == THEIRS
        else f"node {OURS}.{mixed.ours.pid} elected for '{election}'",
        WAIT_S,
    )
    wait_until(lambda: mixed.server.client.llen(ELECTED) >= 1)
    assert mixed.server.client.llen(ELECTED) == 1


# --- one queue for both ---------------------------------------------------------------------------

TASKS = 60


def kill_celery(worker: Process, server: Server, ids: set[bytes]) -> None:
    """Kill a Celery worker at a moment when it loses nothing.

    For a while, what it has popped is nowhere but in its socket: no other worker could help that.
    """

    def holds_nothing_alone() -> bool:
        worker.send_signal(signal.SIGSTOP)
        if found(server) >= ids:
            return True
        worker.send_signal(signal.SIGCONT)
        return False

    wait_until(holds_nothing_alone, WAIT_S)
    worker.kill()


def found(server: Server) -> set[bytes]:
    """Return the ids of all tasks that are on the server: queued, reserved, or with a result."""
    with server.client.pipeline() as all_at_once:
        all_at_once.lrange("celery", 0, -1).lrange("greenq.inbox.celery", 0, -1)
        all_at_once.hvals("unacked").keys("celery-task-meta-*")
        queued, moved, reserved, results = all_at_once.execute()
    messages = b" ".join((*queued, *moved, *reserved))
    return {
        *re.findall(rb'"id": ?"([0-9a-f-]{36})"', messages),
        *(key.removeprefix(b"celery-task-meta-") for key in results),
    }


@pytest.mark.slow
@pytest.mark.faults
def test_workers_of_both_kinds_are_killed_in_turn_and_every_task_has_its_result() -> None:
    ours_is = {
        "worker_lease": 1.0,
        "broker_transport_options": {"visibility_timeout": 2.5},
        "task_acks_late": True,
    }
    theirs_is = {
        "task_acks_late": True,
        "broker_transport_options": {"visibility_timeout": 2.5},
        "worker_prefetch_multiplier": 1,
    }
    with valkey() as server, celery_client(server.url) as app, ExitStack() as stack:

        def start(kind: str) -> Process:
            if kind == "greenq":
                return stack.enter_context(
                    greenq_worker(server.url, "-n", OURS, "-c", "2", settings=ours_is)
                )
            return stack.enter_context(
                celery_worker(
                    server.url, "-n", THEIRS, settings=theirs_is, pool="prefork", concurrency=2
                )
            )

        def held() -> tuple[int, int]:
            """Count what greenq's and Celery's workers hold; a tag of ours names its owner."""
            tags = server.client.hkeys("unacked")
            ours = sum(b":" in tag for tag in tags)
            return ours, len(tags) - ours

        results = [app.send_task("shared.sleep", (0.5, number)) for number in range(TASKS)]
        ours, theirs = start("greenq"), start("celery")
        ids = {result.id.encode() for result in results}
        for _ in range(2):
            wait_until(lambda: held()[1] == 2, WAIT_S)
            kill_celery(theirs, server, ids)
            theirs = start("celery")
            wait_until(lambda: min(held()) >= 2, WAIT_S)
            ours.kill()
            ours = start("greenq")
        assert [result.get(timeout=30) for result in results] == list(range(TASKS))
        server.wait_settled(15)
        assert server.dead_letters() == []
        assert ours.alive
        theirs.kill()
