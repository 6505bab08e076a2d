"""A proxy in front of a real server that parses the protocol, and fails at a chosen command.

A test plans one `Fault`: the n-th command of a kind, and whether the link fails before the server
gets that command, after the server has executed it but before the answer is passed on, or after
that. Everything else passes through. Only connections to the proxy are counted, so a test that
sends its tasks directly to the server counts only the worker's commands.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import BinaryIO
from urllib.parse import urlsplit

from greenq.transport.client import load_script

Command = list[bytes]
Kind = Callable[[Command], bool]

_WAIT_S = 20.0
_NOTHING = (b"-", b"$-1", b"*-1", b"_")

# If the link has pushes; see Link.
_ANSWERED_BY_PUSHES = {b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE"}


class When(Enum):
    """How far the command gets."""

    BEFORE = "not sent"
    EXECUTED = "executed, answer lost"
    DELIVERED = "answer delivered"


class How(Enum):
    """What happens to the link."""

    CUT = "both ends are closed"
    FREEZE = "nothing passes any more, both ends stay open"
    LATE = "the client's end is closed; the server gets the command only when `Fault.let_go` is set"


@dataclass(slots=True)
class Fault:
    """One planned failure.

    Attributes:
        kind: which commands count.
        number: 1 for the first of them.
        strike: called in the proxy's thread before the link fails, and before a delivered answer.
        fired: set when the link has failed.
        let_go: set by the test to end FREEZE, or to execute the command of LATE.
        over: set when the server has executed the command of LATE.
        answer: the server's answer to the command of LATE.
    """

    kind: Kind
    when: When
    how: How = How.CUT
    number: int = 1
    strike: Callable[[], None] = lambda: None
    fired: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    answer: bytes = b""

    def wait_fired(self) -> None:
        assert self.fired.wait(_WAIT_S), f"the command to fail at was never sent: {self.when}"


def named(*names: str) -> Kind:
    """Count commands by name."""
    wanted = {name.encode() for name in names}
    return lambda command: command[0] in wanted


def script(name: str) -> Kind:
    """Count the calls of one of greenq's scripts, by its SHA or its text."""
    loaded = load_script(name)
    texts = {loaded.sha.encode(), loaded.source.encode()}
    return lambda command: command[0] in {b"EVALSHA", b"EVAL"} and command[1] in texts


# How many arguments each item of a workflow's lists takes.
_ITEMS = (3, 5, 2, 3, 3, 3, 2)


def endings(command: Command) -> list[str]:
    """Return the operations in a call of the settle script."""
    if not _SETTLE(command):
        return []
    arguments = command[3 + int(command[2]) :]
    count = int(arguments[0])
    # Behind six numbers and the tags.
    heads, at = [], 6 + count
    for _ in range(count):
        head = arguments[at].decode()
        heads.append(head)
        at += 1 + (head[1] != "-") + 3 * (head[0] in "gGmM")
        if head[0].isupper():
            # The lists of a workflow, each behind its length.
            for size in _ITEMS:
                at += 1 + int(arguments[at]) * size
    return heads


def stores(command: Command) -> bool:
    """Count the calls of the settle script that store results."""
    return any(head[1] != "-" for head in endings(command))


def settles(command: Command) -> bool:
    """Count the calls of the settle script, except those that only publish."""
    return bool(endings(command))


TAKE = script("take")
_SETTLE = script("settle")
SETTLE = settles
BLMOVE = named("BLMOVE")


class Proxy:
    """Listens on a free port and passes everything on to `url`'s server, until a fault strikes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"
        # Shared by the links' threads, under the lock.
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._seen = 0
        self._links: list[Link] = []
        self.commands: list[Command] = []
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    def plan(self, fault: Fault) -> Fault:
        """Let `fault` strike once; its commands are counted from now on."""
        with self._lock:
            self._fault, self._seen = fault, 0
        return fault

    def sent(self, kind: Kind) -> int:
        """Count the commands of a kind that have reached the server's end so far."""
        with self._lock:
            return sum(1 for command in self.commands if kind(command))

    def fault_of(self, command: Command) -> Fault | None:
        """Return the fault to strike at this command, if any."""
        with self._lock:
            fault = self._fault
            if fault is None or not fault.kind(command):
                return None
            self._seen += 1
            if self._seen < fault.number:
                return None
            self._fault = None
            return fault

    def spare(self, fault: Fault) -> None:
        """Plan a fault again whose command had no effect."""
        with self._lock:
            self._fault, self._seen = fault, fault.number - 1

    def passed(self, command: Command) -> None:
        with self._lock:
            self.commands.append(command)

    def close(self) -> None:
        """Stop listening and cut every link."""
        # Closing alone does not end an accept that is running in another thread.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(_WAIT_S)
        for link in self._links:
            link.end()
        for link in self._links:
            link.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            self._links.append(Link(self, client, server))


class Link:
    """One client's connection and its counterpart to the server; a thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        # For each command under way, in order: the fault that waits for its answer.
        self._pending: deque[Fault | None] = deque()
        self._answered = threading.Condition()
        self._frozen: Fault | None = None
        self._dead = False
        # True if the client has chosen RESP3, in which pushes differ from answers.
        self._has_pushes = False
        self._threads = [
            threading.Thread(target=run, name=f"proxy {run.__name__}", daemon=True)
            for run in (self._up, self._down)
        ]
        for thread in self._threads:
            thread.start()

    def cut(self) -> None:
        """Close both ends; the client can still read what was passed on before."""
        self._dead = True
        self._hang_up()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        with self._answered:
            self._answered.notify_all()

    def end(self) -> None:
        """Cut the link and let its threads end."""
        if self._frozen is not None:
            self._frozen.let_go.set()
        self.cut()
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(_WAIT_S)
            assert not thread.is_alive(), f"{thread.name} does not end"
        self._client.close()
        self._server.close()

    def _hang_up(self) -> None:
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)

    def _up(self) -> None:
        with suppress(OSError), self._client.makefile("rb") as stream:
            for raw, command in frames(stream):
                # Read what the client of a dead link still writes, so that its connection ends
                # cleanly.
                if not self._dead:
                    self._pass_command(raw, command)
        if self._frozen is None:
            self.cut()

    def _pass_command(self, raw: bytes, command: Command) -> None:
        fault = self._proxy.fault_of(command)
        if fault is not None and fault.when is When.BEFORE:
            self._wait_answers()
            self._strike(fault)
            if self._dead:
                return
            if fault.how is How.LATE:
                self._pending.append(fault)
                self._server.sendall(raw)
                return
        self._proxy.passed(command)
        if command[:2] == [b"HELLO", b"3"]:
            self._has_pushes = True
        if not self._has_pushes or command[0] not in _ANSWERED_BY_PUSHES:
            self._pending.append(fault)
        self._server.sendall(raw)

    def _wait_answers(self) -> None:
        """Wait for the answers to all earlier commands, so that a fault's position is exact."""
        with self._answered:
            assert self._answered.wait_for(lambda: not self._pending or self._dead, _WAIT_S)

    def _down(self) -> None:
        with suppress(OSError), self._server.makefile("rb") as stream:
            for raw, _ in frames(stream):
                if self._dead:
                    break
                self._pass_answer(raw)
        self.cut()

    def _pass_answer(self, raw: bytes) -> None:
        if self._frozen is not None and self._frozen.how is How.FREEZE:
            self._frozen.let_go.wait()
        fault = None if raw.startswith(b">") or not self._pending else self._pending[0]
        if fault is not None and fault.when is not When.BEFORE and raw.startswith(_NOTHING):
            self._proxy.spare(fault)
            fault = None
        if fault is None:
            self._client.sendall(raw)
        elif fault.how is How.LATE:
            fault.answer = raw
            fault.over.set()
        elif fault.when is When.EXECUTED:
            self._strike(fault)
            if not self._dead:
                self._client.sendall(raw)
        elif fault.when is When.DELIVERED:
            fault.strike()
            self._client.sendall(raw)
            self._fail(fault)
        else:
            self._client.sendall(raw)
        if not raw.startswith(b">") and self._pending:
            with self._answered:
                self._pending.popleft()
                self._answered.notify_all()

    def _strike(self, fault: Fault) -> None:
        fault.strike()
        self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        if fault.how is How.CUT:
            self.cut()
            fault.fired.set()
            return
        self._frozen = fault
        if fault.how is How.LATE:
            self._hang_up()
        fault.fired.set()
        fault.let_go.wait()


@contextmanager
def proxy_before(url: str) -> Iterator[Proxy]:
    """Run a proxy in front of a server."""
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()


def frames(stream: BinaryIO) -> Iterator[tuple[bytes, Command]]:
    """Read commands or answers one by one: the bytes, and the items of a list of strings."""
    while True:
        items: Command = []
        raw = _frame(stream, items)
        if not raw:
            return
        yield raw, items


def _frame(stream: BinaryIO, items: Command) -> bytes:
    line = stream.readline()
    if not line:
        return b""
    kind, size = line[:1], line[1:].strip()
    if kind in b"$=!" and size != b"-1":
        body = stream.read(int(size) + 2)
        items.append(body[:-2])
        return line + body
    if kind in b"*~>%":
        count = max(int(size), 0) * (2 if kind == b"%" else 1)
        return line + b"".join([_frame(stream, items) for _ in range(count)])
    return line
