"""One idle worker looks after the lists that nobody waits for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from socket import gethostname

import pytest

from greenq import Greenq
from greenq.protocol.keys import Keys
from greenq.transport.owner import Owner
from tests.servers import Process, Server, greenq_worker, valkey
from tests.support import FairTime, wait_until

WORKERS = 5
PUSHES = 20
WAIT_S = 30

# The first four are waited for, the last one is not.
QUEUES = ("q", "b", "c", "d", "fifth")

# So seldom renewed that a renewal, which also sees what has come, is no way to be quick.
LEASE_S = 30.0
RENEWED_EACH_S = 0.4 * LEASE_S

# Commands that a worker sends because it was woken, or because it relays.
WAKING = ("blmove", "client|unblock", "evalsha")
RELAYING = ("client|tracking", "client|caching")

KEY = Keys().relay(QUEUES)


@contextmanager
def fleet(url: str, count: int = WORKERS, lease_s: float = LEASE_S) -> Iterator[list[Process]]:
    """Run some workers of the same queues, started side by side."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                greenq_worker(
                    url,
                    *("-n", f"w{number}", "-Q", ",".join(QUEUES), "-c", "20"),
                    *("--without-mingle", "--without-gossip", "--without-heartbeat"),
                    app="ledger_app",
                    settings={"worker_lease": lease_s},
                )
            )
            for number in range(count)
        ]


@pytest.fixture(scope="module")
def idlers() -> Iterator[tuple[Server, list[Process]]]:
    """Run a server and idle workers of which one relays."""
    with valkey() as server, fleet(server.url) as workers:
        wait_until(lambda: relay(server), WAIT_S)
        yield server, workers


@pytest.fixture
def app(idlers: tuple[Server, list[Process]]) -> Iterator[Greenq]:
    server, _ = idlers
    wait_all_idle(server)
    with closing(Greenq("sender", broker=server.url, set_as_current=False)) as client:
        yield client
    server.client.delete("ledger")


def relay(server: Server) -> str | None:
    """Return the member of who relays."""
    member = server.client.get(KEY)
    return None if member is None else member.decode()


def wait_all_idle(server: Server, workers: int = WORKERS) -> None:
    """Wait until all workers wait for all the queues that are waited for."""
    waits = workers * (len(QUEUES) - 1)
    wait_until(lambda: server.client.info("clients")["blocked_clients"] == waits, WAIT_S)


def runs(server: Server) -> list[str]:
    """Return each run as it was written down: what, and where."""
    return [line.decode() for line in server.client.lrange("ledger", 0, -1)]


def push(app: Greenq, name: str, queue: str, priority: int) -> None:
    """Send one task and wait for it."""
    result = app.send_task("ledger.nap", (name, 0.0), queue=queue, priority=priority)
    assert result.get(timeout=WAIT_S) == name


def commands(server: Server, names: tuple[str, ...]) -> int:
    """Count calls of these commands, renewals left out."""
    stats = server.client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()}
    # Only a renewal reads which queues are paused.
    return sum(calls.get(name, 0) for name in names) - calls.get("hkeys", 0)


def measure(server: Server, app: Greenq, queue: str, priority: int) -> tuple[float, int, int]:
    """Push some messages, one after the other; return the time and the commands that took."""
    wait_all_idle(server)
    began_s, waking = time.monotonic(), commands(server, WAKING)
    every = commands(server, WAKING + RELAYING)
    for number in range(PUSHES):
        push(app, f"{queue}{priority}/{number}", queue, priority)
        wait_all_idle(server)
    return (
        time.monotonic() - began_s,
        commands(server, WAKING) - waking,
        commands(server, WAKING + RELAYING) - every,
    )


@pytest.mark.parametrize(("queue", "priority"), [("q", 3), ("fifth", 0), ("fifth", 6)])
def test_what_nobody_waits_for_begins_quickly_on_one_worker_and_wakes_hardly_another(
    idlers: tuple[Server, list[Process]], app: Greenq, queue: str, priority: int
) -> None:
    server, _ = idlers
    plain_s, plain, _ = measure(server, app, "q", 0)

    took_s, waking, every = measure(server, app, queue, priority)

    names = [line.split()[0] for line in runs(server)]
    assert len(names) == len(set(names)) == 2 * PUSHES
    # Renewals alone would need more than a second for each, with so many workers.
    assert took_s < plain_s + PUSHES * 0.6
    # As many as five workers would send, were they woken, is much more.
    assert waking <= 2 * plain, (waking, every, plain)
    assert every <= 3 * plain, (waking, every, plain)


@pytest.mark.parametrize("how", ["paused", "cancelled"])
def test_a_queue_that_is_left_alone_is_not_relayed(
    idlers: tuple[Server, list[Process]], app: Greenq, how: str
) -> None:
    server, _ = idlers
    control = app.control
    everybody = [f"w{number}@{gethostname()}" for number in range(WORKERS)]
    if how == "paused":
        app.transport.broker.pause("q", "me")
        inspect = control.inspect(everybody, timeout=WAIT_S)
        wait_until(lambda: all(told["paused"] == ["q"] for told in inspect.status().values()), 60)
    else:
        control.cancel_consumer("q", destination=everybody, reply=True, timeout=WAIT_S)
    left = Keys().relay([queue for queue in QUEUES if queue != "q"])
    wait_until(lambda: server.client.exists(left), WAIT_S)
    try:
        held_back = app.send_task("ledger.nap", ("q", 0.0), queue="q", priority=3)
        # The relay has looked at all lists when these have run.
        for number in range(5):
            push(app, f"b{number}", "b", 3)
            push(app, f"fifth{number}", "fifth", 0)
        assert server.client.llen("q\x06\x163") == 1
        assert not server.client.exists("q", "greenq.inbox.q")
    finally:
        if how == "paused":
            app.transport.broker.resume("q")
        else:
            control.add_consumer("q", destination=everybody, reply=True, timeout=WAIT_S)
    # It is looked after again.
    assert held_back.get(timeout=WAIT_S) == "q"
    wait_until(lambda: relay(server), WAIT_S)
    began_s = time.monotonic()
    for number in range(5):
        push(app, f"q{number}", "q", 3)
    assert time.monotonic() - began_s < RENEWED_EACH_S


def test_when_the_relay_dies_another_one_takes_over_and_nothing_waits_for_that() -> None:
    lease_s = 5.0
    renewed_each_s = 0.4 * lease_s
    with (
        valkey() as server,
        fleet(server.url, 3, lease_s) as workers,
        closing(Greenq("sender", broker=server.url, set_as_current=False)) as app,
    ):
        wait_until(lambda: relay(server), WAIT_S)
        wait_all_idle(server, 3)
        first = relay(server)
        assert first is not None
        pid = int(Owner.parse(first).process.rpartition("/")[2].partition(":")[0])
        assert pid in {worker.pid for worker in workers}

        os.kill(pid, signal.SIGKILL)
        killed = FairTime()
        for queue, priority in (("q", 3), ("fifth", 0)):
            push(app, queue, queue, priority)
        # The renewals of the others have seen them.
        assert killed.passed_s() < 2 * renewed_each_s
        # What the dead one has said holds as long as its lease would have.
        wait_until(lambda: relay(server) not in (None, first), 3 * WAIT_S)
        assert killed.passed_s() < lease_s + 2 * renewed_each_s
        assert len(runs(server)) == 2
        next(worker for worker in workers if worker.pid == pid).kill()


def test_where_changes_may_not_be_announced_renewals_see_what_has_come(server: Server) -> None:
    server.client.execute_command(
        "ACL", "SETUSER", "plain", "reset", "on", ">plain", "+@all", "~*", "&*", "-client|tracking"
    )
    url = server.url.replace("redis://", "redis://plain:plain@")
    try:
        with (
            greenq_worker(url, "-Q", ",".join(QUEUES)) as worker,
            closing(Greenq("sender", broker=server.url, set_as_current=False)) as app,
        ):
            worker.wait_text("does not announce messages on less urgent lists")
            for queue, priority in (("q", 3), ("fifth", 0)):
                sent_s = time.monotonic()
                result = app.send_task("shared.add", (1, 2), queue=queue, priority=priority)
                assert result.get(timeout=WAIT_S) == 3
                assert time.monotonic() - sent_s < WAIT_S
            # It says so once, and nothing else is wrong.
            assert worker.text.count("does not announce messages on less urgent lists") == 1
            assert "WARNING" not in worker.text
            assert "ERROR" not in worker.text
    finally:
        server.client.execute_command("ACL", "DELUSER", "plain")
