"""Ways to wait for work, measured side by side: ``python -m benchmarks.waiting``.

A worker waits on one queue, which is four lists: the main list and three priority steps. Idle
waiters share a server, and a message is pushed. One waiter should take it soon, the others should
not notice, and nothing may get lost if the woken waiter dies. Prints Markdown; takes less than a
minute.
"""

from __future__ import annotations

import math
import random
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
import gevent.socket
import hiredis

from benchmarks.server import valkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_MAIN = "celery"
_PRIORITY = ("celery\x06\x163", "celery\x06\x166", "celery\x06\x169")
_LISTS = (_MAIN, *_PRIORITY)
_INBOX = "inbox"

# How long a waiter blocks before it checks again; BRPOP and polling have their own intervals.
_LOOK_S = 2
_BRPOP_S = 1
_POLL_S = 0.01

_FLEET = 50
_PUSHES = 200
_PRIORITY_PUSHES = 100
_IDLE_S = 4.0
_DEADLINE_S = 10.0

# Pops the first message and records it, in one atomic step. KEYS: unacked, unacked_index, lists…
_TAKE = """
for i = 3, #KEYS do
  local message = redis.call('RPOP', KEYS[i])
  if message then
    redis.call('HSET', KEYS[1], ARGV[1], message)
    redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
    return message
  end
end
return false
"""

_NOTHING = object()


class Wire:
    """One connection in RESP3, for one greenlet at a time.

    Attributes:
        noticed: whether the server has announced a change since this was last set to False.
    """

    def __init__(self, port: int) -> None:
        """Connect."""
        self._socket = gevent.socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self.noticed = False
        self.call("HELLO", 3)

    def call(self, *command: str | float) -> Any:
        """Send one command and return its reply. Switches: yes."""
        return self.pipeline(command)[0]

    def pipeline(self, *commands: Sequence[str | float]) -> list[Any]:
        """Send commands in one round trip and return their replies. Switches: yes."""
        self.send(*commands)
        return [self.receive() for _ in commands]

    def send(self, *commands: Sequence[str | float]) -> None:
        """Write commands without waiting for replies."""
        # hiredis's stubs declare a tuple of one item only.
        packed = (hiredis.pack_command(tuple(each)) for each in commands)  # type: ignore[arg-type]
        self._socket.sendall(b"".join(packed))

    def receive(self, *, push: bool = False, timeout_s: float | None = None) -> Any:
        """Return the next reply; if `push` is true, return a push message if one comes first.

        Switches: yes.

        Raises:
            TimeoutError: nothing arrived in time.
            ConnectionError: the server has closed the connection.
            hiredis.ReplyError: the server refused the command.
        """
        self._socket.settimeout(timeout_s)
        while True:
            reply = self._reader.gets()
            if reply is _NOTHING:
                received = self._socket.recv(65536)
                if not received:
                    raise ConnectionError("the server has closed the connection")
                self._reader.feed(received)
            elif isinstance(reply, hiredis.PushNotification):
                self.noticed = True
                if push:
                    return reply
            elif isinstance(reply, hiredis.ReplyError):
                raise reply
            else:
                return reply

    def close(self) -> None:
        """Close the connection, as the kernel does for a killed process."""
        self._socket.close()


@dataclass(slots=True)
class Seen:
    """When the waiters noticed a push, in seconds of `time.perf_counter`."""

    wakes: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)


class Waiter(ABC):
    """An idle worker: takes all messages, then waits.

    Attributes:
        label: name of the kind, for the table.
        lists: the lists that it takes from, most urgent first.
        blocks: whether it waits in a blocking command.
        resting: True if nothing has reached it since it began to wait.
    """

    label = ""
    blocks = False
    lists: tuple[str, ...] = _LISTS

    def __init__(self, port: int, number: int, seen: Seen) -> None:
        """Connect; `seen` is shared by all waiters."""
        self.wire = Wire(port)
        self.resting = False
        self.seen = seen
        self._number = number
        self._tags = 0
        self._sha = self.wire.call("SCRIPT", "LOAD", _TAKE)

    def run(self) -> None:
        """Work forever."""
        while True:
            while self.take():
                self.seen.taken.append(time.perf_counter())
            while not self.arm() and not self._rest():
                pass

    def _rest(self) -> bool:
        self.resting = True
        try:
            return self.hear()
        finally:
            self.resting = False

    def take(self) -> bool:
        """Reserve a message in one step, as all candidates except BRPOP do."""
        keys = ("unacked", "unacked_index", *self.lists)
        answer = self.wire.call("EVALSHA", self._sha, len(keys), *keys, self.tag(), time.time())
        return answer is not None

    def tag(self) -> str:
        """Return a new delivery tag."""
        self._tags += 1
        return f"{self._number}:{self._tags}"

    def woken(self) -> None:
        """Note that the server has announced work."""
        self.seen.wakes.append(time.perf_counter())

    def watch(self, lists: Sequence[str]) -> bool:
        """Request an announcement of the next change; return True if there is work already."""
        self.wire.noticed = False
        cached, exist = ("CLIENT", "CACHING", "YES"), ("EXISTS", *lists)
        return bool(self.wire.pipeline(cached, exist)[-1])

    def close(self) -> None:
        """Close the connection."""
        self.wire.close()

    @abstractmethod
    def arm(self) -> bool:
        """Start waiting; return True if there is work already."""

    @abstractmethod
    def hear(self) -> bool:
        """Wait for an announcement or a timeout; return True if a take may find work."""


class _Blmove(Waiter):
    """Blocks on the main list; changes of the other three are announced on the same connection."""

    blocks = True
    target = ""
    side = ""

    def __init__(self, port: int, number: int, seen: Seen) -> None:
        super().__init__(port, number, seen)
        self._control = Wire(port)
        self._client_id = self.wire.call("CLIENT", "ID")
        self.wire.call("CLIENT", "TRACKING", "ON", "OPTIN")
        self.wire.noticed = True

    def close(self) -> None:
        super().close()
        self._control.close()

    def arm(self) -> bool:
        if self.wire.noticed and self.watch(_PRIORITY):
            return True
        self.wire.send(("BLMOVE", _MAIN, self.target, "RIGHT", self.side, _LOOK_S))
        return False

    def hear(self) -> bool:
        answer = self.wire.receive(push=True)
        if answer is None:
            return False
        self.woken()
        if isinstance(answer, hiredis.PushNotification):
            self._unblock()
        return True

    def _unblock(self) -> None:
        """End the BLMOVE from outside and read its reply, which may still be a message."""
        while True:
            self._control.call("CLIENT", "UNBLOCK", self._client_id)
            try:
                self.wire.receive(timeout_s=0.001)
            except TimeoutError:
                # The server handled the unblocking before the BLMOVE, which was sent on another
                # socket.
                continue
            return


class Inbox(_Blmove):
    """The message moves to a list that all workers drain first; one waiter is woken."""

    label = "(a) BLMOVE to an inbox"
    target = _INBOX
    side = "LEFT"
    lists = (_INBOX, *_LISTS)

    def hear(self) -> bool:
        """Wait; after a timeout, look for what a dead worker left in the inbox."""
        return super().hear() or bool(self.wire.call("EXISTS", _INBOX))


class Peek(_Blmove):
    """The message moves onto itself, so it stays in its place and the next waiter sees it, too."""

    label = "(b) BLMOVE onto itself"
    target = _MAIN
    side = "RIGHT"


class Tracking(Waiter):
    """All lists are watched through client-side caching; nothing blocks."""

    label = "(c) CLIENT TRACKING"

    def __init__(self, port: int, number: int, seen: Seen) -> None:
        """Connect, and ask for announcements."""
        super().__init__(port, number, seen)
        self.wire.call("CLIENT", "TRACKING", "ON", "OPTIN")

    def arm(self) -> bool:
        """Watch all lists."""
        return self.watch(_LISTS)

    def hear(self) -> bool:
        """Read an announcement, which may have come with an earlier reply."""
        if not self.wire.noticed:
            try:
                self.wire.receive(push=True, timeout_s=_LOOK_S)
            except TimeoutError:
                return False
        self.woken()
        return True


class Brpop(Waiter):
    """Celery's way: the message leaves the server, then the worker records it."""

    label = "(d) BRPOP, then record"
    blocks = True

    def take(self) -> bool:
        """Take nothing, since the woken waiter already has the message."""
        return False

    def arm(self) -> bool:
        """Block on all lists at once."""
        self.wire.send(("BRPOP", *_LISTS, _BRPOP_S))
        return False

    def hear(self) -> bool:
        """Read the message and record it."""
        answer = self.wire.receive()
        if answer is None:
            return False
        self.woken()
        tag = self.tag()
        self.wire.pipeline(
            ("MULTI",),
            ("ZADD", "unacked_index", time.time(), tag),
            ("HSET", "unacked", tag, answer[1]),
            ("EXEC",),
        )
        self.seen.taken.append(time.perf_counter())
        return False


class Polling(Waiter):
    """Polls at a fixed interval."""

    label = f"(e) polling each {_POLL_S * 1000:.0f} ms"

    def take(self) -> bool:
        """Poll; finding a message counts as a wake-up."""
        found = super().take()
        if found:
            self.woken()
        return found

    def run(self) -> None:
        """Start after a random delay, so that a fleet does not poll all at once."""
        gevent.sleep(random.uniform(0, _POLL_S))
        super().run()

    def arm(self) -> bool:
        """Do nothing, since polling needs no preparation."""
        return False

    def hear(self) -> bool:
        """Sleep."""
        gevent.sleep(_POLL_S)
        return True


_CANDIDATES: tuple[type[Waiter], ...] = (Inbox, Peek, Tracking, Brpop, Polling)


_COLUMNS = (
    "wait",
    "waiters",
    "push to wake, ms: p50",
    "p99",
    "push to in hand, ms: p50",
    "p99",
    "woken per push",
    "commands per push",
)


class Pushed(NamedTuple):
    """What pushes cost: latencies in milliseconds, ascending, and counts per push."""

    wake_ms: list[float]
    hand_ms: list[float]
    woken: float
    commands: float


def push_many(port: int, kind: type[Waiter], count: int, key: str, pushes: int) -> Pushed:
    """Push messages one by one to idle waiters of a kind."""
    seen = Seen()
    wake_ms, hand_ms, woken = [], [], 0
    with _fleet(port, kind, count, seen) as (control, waiters):
        _settle(waiters, seen)
        before = _commands(control)
        for number in range(pushes):
            gevent.sleep(random.uniform(0, 0.006))
            seen.wakes.clear()
            seen.taken.clear()
            start = time.perf_counter()
            control.call("LPUSH", key, f"message {number}")
            _await(lambda: bool(seen.taken), f"{kind.label}: message {number} was not taken")
            _settle(waiters, seen)
            wake_ms.append(1000 * (seen.wakes[0] - start))
            hand_ms.append(1000 * (seen.taken[0] - start))
            woken += len(seen.wakes)
        # Subtract the measurement's own commands: one LPUSH per message, and the first INFO.
        commands = _commands(control) - before - pushes - 1
        kept = control.call("HLEN", "unacked")
    if kept != pushes:
        raise RuntimeError(f"{kind.label}: {kept} of {pushes} messages were recorded")
    return Pushed(sorted(wake_ms), sorted(hand_ms), woken / pushes, commands / pushes)


def idle_rate(port: int, kind: type[Waiter], count: int) -> float:
    """Return how many commands per second one idle waiter costs the server."""
    with _fleet(port, kind, count, Seen()) as (control, _):
        # All waiters have just started to wait. Half a second later, no wait ends at an edge of the
        # window.
        gevent.sleep(0.5)
        start, before = time.perf_counter(), _commands(control)
        gevent.sleep(_IDLE_S)
        commands = _commands(control) - before - 1
        return commands / (time.perf_counter() - start) / count


def after_kill(port: int, kind: type[Waiter]) -> str:
    """Kill a waiter that has not read its reply; return where the message is."""
    control = Wire(port)
    control.call("FLUSHALL")
    waiter = kind(port, 0, Seen())
    waiter.arm()
    if kind.blocks:
        _await(
            lambda: "blocked_clients:1" in control.call("INFO", "clients").decode(),
            f"{kind.label}: it does not wait",
        )
    control.call("LPUSH", _MAIN, "message")
    control.call("PING")
    waiter.close()
    places = [key for key in (*_LISTS, _INBOX) if control.call("LLEN", key)]
    control.close()
    if not places:
        return "**yes**: it was only in the dead socket"
    return f"no: it is in `{places[0]}`"


@contextmanager
def _fleet(
    port: int, kind: type[Waiter], count: int, seen: Seen
) -> Iterator[tuple[Wire, list[Waiter]]]:
    """Run waiters on an empty server; if any of them has failed, raise its error at the end."""
    control = Wire(port)
    control.call("FLUSHALL")
    waiters = [kind(port, number, seen) for number in range(count)]
    greenlets = [gevent.spawn(waiter.run) for waiter in waiters]
    try:
        yield control, waiters
    finally:
        crashed = [each for each in greenlets if each.ready()]
        gevent.killall(greenlets)
        for waiter in waiters:
            waiter.close()
        control.close()
        for each in crashed:
            each.get()


def _settle(waiters: Sequence[Waiter], seen: Seen) -> None:
    """Wait until all waiters are waiting and none has been woken for a moment."""
    before = -1
    deadline = time.monotonic() + _DEADLINE_S
    polling = isinstance(waiters[0], Polling)
    while before != len(seen.wakes) or not (polling or all(each.resting for each in waiters)):
        before = len(seen.wakes)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{waiters[0].label}: the waiters do not come to rest")
        gevent.sleep(0.002)


def _await(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{complaint} within {_DEADLINE_S:.0f} s")
        gevent.sleep(0.0005)


def _commands(control: Wire) -> int:
    """Return how many commands the server has run so far, including those inside scripts."""
    calls = 0
    for line in control.call("INFO", "commandstats").decode().splitlines():
        if line.startswith("cmdstat_"):
            calls += int(line.partition("calls=")[2].partition(",")[0])
    return calls


def main() -> None:
    """Measure all candidates and print two tables."""
    main_rows, priority_rows = [], []
    with valkey() as server:
        for kind in _CANDIDATES:
            lost = after_kill(server.port, kind)
            idle = f"{idle_rate(server.port, kind, _FLEET):.1f}"
            for count in (1, _FLEET):
                pushed = push_many(server.port, kind, count, _MAIN, _PUSHES)
                main_rows.append((kind.label, str(count), *_cells(pushed), idle, lost))
                pushed = push_many(server.port, kind, count, _PRIORITY[1], _PRIORITY_PUSHES)
                priority_rows.append((kind.label, str(count), *_cells(pushed)))
    print(f"One message pushed to the main list ({_PUSHES} times)\n")
    print(_markdown((*_COLUMNS, "idle commands/s per waiter", "lost at kill -9"), main_rows))
    print(f"\nOne message pushed to a priority list ({_PRIORITY_PUSHES} times)\n")
    print(_markdown(_COLUMNS, priority_rows))


def _cells(pushed: Pushed) -> list[str]:
    latencies = [
        f"{_percentile(values, share):.2f}"
        for values in (pushed.wake_ms, pushed.hand_ms)
        for share in (0.5, 0.99)
    ]
    return [*latencies, f"{pushed.woken:.1f}", f"{pushed.commands:.0f}"]


def _percentile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


if __name__ == "__main__":
    main()
