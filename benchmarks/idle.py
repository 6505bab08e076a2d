"""What idle workers cost, and what one message costs among many of them.

Also measures what the heartbeats that workers receive from each other cost.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import proc
from benchmarks.events import Heartbeats
from benchmarks.launch import workers
from benchmarks.peer import Setup
from benchmarks.wire import Messages

if TYPE_CHECKING:
    import redis
    from redis.client import Monitor

    from benchmarks.launch import Workers
    from benchmarks.peer import Peer
    from benchmarks.server import Server

_FLEET = 50
_REST_S = 5.0
_FLEET_IDLE_S = 6.0
# The interval of heartbeats in both Celery and greenq.
_BEAT_S = 2.0
_QUIET_S = 10.0
_BETWEEN_S = 0.5
_DEADLINE_S = 120.0
_POLL_S = 0.05
_BEGIN, _END = "bench.begin", "bench.end"


def alone(server: Server, peer: Peer, seconds: int) -> dict[str, float]:
    """Measure one idle worker with default settings for `seconds`.

    Commands are counted in two ways: those that the worker sent, and all commands that the server
    carried out for it, including those inside scripts.
    """
    with server.client() as client, workers(server, peer, Setup(concurrency=0)) as started:
        _run_some(server, client, started, peer)
        time.sleep(_REST_S)
        connections = len(client.client_list()) - 1
        with client.monitor() as seen:
            before, cpu_s = _look(client), proc.precise_cpu_s(started.pids)
            client.echo(_BEGIN)
            time.sleep(seconds)
            client.echo(_END)
            after, cpu_s = _look(client), proc.precise_cpu_s(started.pids) - cpu_s
            sent = _sent_between(seen)
        started.check_alive()
        took_s = after.at_s - before.at_s
        return {
            "seconds": took_s,
            "client_commands_s": sent / took_s,
            # Subtract the two marks of the measurement.
            "commands_s": (_carried_out(before, after) - 2) / took_s,
            "cpu_s_a_minute": 60 * cpu_s / took_s,
            "rss_mb": proc.rss_mb(started.pids),
            "connections": connections,
        }


def fleet(server: Server, peer: Peer, messages: int) -> dict[str, float]:
    """Measure what a message costs the server when 50 workers wait, and when one waits.

    The cost is all commands above the idle rate, including those inside scripts.
    """
    one = _cost(server, peer, messages, 1)
    many = _cost(server, peer, messages, _FLEET)
    return {"commands_of_one": one, "commands_of_many": many, "wakes": many / one}


def heartbeats(server: Server, peer: Peer, seconds: int) -> dict[str, float]:
    """Measure an idle worker that receives the heartbeats of 50 other workers for `seconds`.

    The heartbeats are published from this process, not from the worker's.
    """
    with server.client() as client, workers(server, peer, Setup(concurrency=0)) as started:
        _run_some(server, client, started, peer)
        time.sleep(_REST_S)
        idle = _Stretch(started)
        time.sleep(_QUIET_S)
        idle_percent = idle.percent()
        beats = Heartbeats(client, _FLEET, _BEAT_S)
        # Send one round first, so that the worker knows all other workers.
        beats.send(_BEAT_S)
        heard = _Stretch(started)
        count = beats.send(seconds)
        took_s, percent = heard.seconds(), heard.percent()
        started.check_alive()
    return {
        "seconds": took_s,
        "heartbeats_s": count / took_s,
        "cpu_percent": percent,
        "idle_cpu_percent": idle_percent,
    }


class _Stretch:
    """A period that starts now, and what some workers use during it."""

    def __init__(self, started: Workers) -> None:
        self._started = started
        self._from_s = time.monotonic()
        self._from_cpu_s = proc.precise_cpu_s(started.pids)

    def seconds(self) -> float:
        return time.monotonic() - self._from_s

    def percent(self) -> float:
        """Return how much of one core, in percent, the workers have used since then."""
        cpu_s = proc.precise_cpu_s(self._started.pids) - self._from_cpu_s
        return 100 * cpu_s / self.seconds()


class _Look(NamedTuple):
    """How many commands the server has carried out so far."""

    at_s: float
    carried_out: int


def _look(client: redis.Redis) -> _Look:
    carried_out: int = client.info("stats")["total_commands_processed"]
    return _Look(time.monotonic(), carried_out)


def _carried_out(before: _Look, after: _Look) -> int:
    """Count the commands between two readings; the first reading did not count itself."""
    return after.carried_out - before.carried_out - 1


def _sent_between(seen: Monitor) -> int:
    """Count the commands that the server received from clients between the two marks."""
    count, counting = 0, False
    for each in seen.listen():
        if each["command"] == f"ECHO {_END}":
            return count
        count += counting and each["client_type"] != "lua"
        counting = counting or each["command"] == f"ECHO {_BEGIN}"
    raise RuntimeError("the server stopped reporting commands")


def _run_some(server: Server, client: redis.Redis, started: Workers, peer: Peer) -> None:
    """Wait until every worker has started, and run a few tasks, to finish imports and set-up."""
    _settle(client, started)
    messages = Messages(server, client, "noop")
    for _ in range(2 * len(started.processes)):
        _run_one(client, started, peer, messages)


def _run_one(client: redis.Redis, started: Workers, peer: Peer, messages: Messages) -> int:
    """Push one message and wait for its result; return how many commands this function sent."""
    ids = messages.ids(1)
    messages.push(client, peer.queue, ids)
    deadline, commands = time.monotonic() + _DEADLINE_S, 1
    while not client.exists(f"celery-task-meta-{ids[0]}"):
        commands += 1
        started.check_alive()
        if time.monotonic() > deadline:
            raise started.complaint("a task does not end")
        time.sleep(_POLL_S)
    return commands + 1


def _settle(client: redis.Redis, started: Workers) -> None:
    """Wait until all workers are connected and there are no new connections."""
    deadline, before = time.monotonic() + _DEADLINE_S, 0
    while True:
        now = len(client.client_list()) - 1
        if now == before and now >= 2 * len(started.processes):
            return
        started.check_alive()
        if time.monotonic() > deadline:
            raise started.complaint(f"only {now} connections of {len(started.processes)} workers")
        before = now
        time.sleep(_REST_S)


def _cost(server: Server, peer: Peer, messages: int, count: int) -> float:
    """Return how many commands one message causes with `count` idle workers."""
    with server.client() as client:
        client.flushall()
        with workers(server, peer, Setup(concurrency=0, processes=count)) as started:
            _run_some(server, client, started, peer)
            writer = Messages(server, client, "noop")
            time.sleep(_REST_S)
            idle = [_rate(client)]
            before, own = _look(client), 0
            for _ in range(messages):
                own += _run_one(client, started, peer, writer)
                time.sleep(_BETWEEN_S)
            after = _look(client)
            # Measure the idle rate before and after, since a worker that has just run a task may
            # have more to renew.
            idle.append(_rate(client))
    caused = _carried_out(before, after) - own
    of_itself = (after.at_s - before.at_s) * sum(idle) / len(idle)
    return (caused - of_itself) / messages


def _rate(client: redis.Redis) -> float:
    before = _look(client)
    time.sleep(_FLEET_IDLE_S)
    after = _look(client)
    return _carried_out(before, after) / (after.at_s - before.at_s)
