"""Access to a real server, one round trip at a time, in place of `greenq.transport.client`."""

from __future__ import annotations

import hashlib
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent.monkey
import greenlet
import hiredis

from greenq.errors import AccessRefused, ConnectionLost, ServerError, TransportTimeout
from greenq.transport import client as real
from tests.model.kernel import Op
from tests.servers import valkey_binary

_socket = gevent.monkey.get_original("socket", "socket")

_TIME = "redis.call('TIME')"
_CLOCK = "redis.call('HMGET', 'model.clock', 's', 'us')"
# The scripts that read the clock, which is replaced by the model's; add new ones here.
CLOCKED = {"take", "lease", "promote"}

LUA = Path(real.__file__).parent / "lua"

pack = hiredis.pack_command


# What is remembered: this many calls from the start of a schedule, and this many in all.
_REMEMBERED_CALLS = 24
_REMEMBERED = 150_000


class Past:
    """The server's answers after each sequence of commands since it was emptied.

    The commands before an answer, which include the clock, determine it. So known answers are not
    requested again; their commands are sent with the first call whose answer is not known.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, ...]] = {}
        self._unsent: list[tuple[Link, bytes, int]] = []
        self._now = self._calls = 0
        self.most_calls = _REMEMBERED_CALLS
        self.most = _REMEMBERED

    def begin(self) -> None:
        """Start with a server that is emptied next."""
        self._unsent.clear()
        self._now = self._calls = 0

    def call(self, link: Link, data: bytes, count: int) -> list[Any]:
        """Answer from memory, or send the command."""
        self._calls += 1
        if self._now < 0:
            return link.carry_out(data, count)
        now = self._now = hash((self._now, link.number, data)) & 0x7FFF_FFFF_FFFF_FFFF
        known = self._known.get(now)
        if known is not None:
            self._unsent.append((link, data, count))
            return list(known)
        self._send()
        answers = link.carry_out(data, count)
        if self._calls <= self.most_calls and len(self._known) < self.most:
            self._known[now] = tuple(answers)
        else:
            # Nothing after this is known.
            self._now = -1
        return answers

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        at = 0
        while at < len(unsent):
            link, parts, count = unsent[at][0], [], 0
            while at < len(unsent) and unsent[at][0] is link:
                parts.append(unsent[at][1])
                count += unsent[at][2]
                at += 1
            link.carry_out(b"".join(parts), count)


class Link:
    """One plain socket to one database of the server."""

    def __init__(self, path: str, database: int, past: Past) -> None:
        self._socket = _socket(1, 1)  # AF_UNIX, SOCK_STREAM
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._reader = hiredis.Reader()
        self._before = b""
        self._skipped = 0
        self._past = past
        self.number = database
        self.calls = 0
        if database:
            self.carry_out(pack(("SELECT", database)), 1)

    def later(self, data: bytes, count: int = 1) -> None:
        """Send commands before the next call, and ignore their answers."""
        self._before += data
        self._skipped += count

    def forget(self) -> None:
        """Drop the commands queued before the next call."""
        self._before, self._skipped = b"", 0

    def call(self, data: bytes, count: int) -> list[Any]:
        """Send commands and return their answers, including errors."""
        skipped, self._skipped = self._skipped, 0
        if skipped:
            data, self._before = self._before + data, b""
        answers = self._past.call(self, data, skipped + count)
        if skipped:
            for answer in answers[:skipped]:
                if isinstance(answer, hiredis.ReplyError):
                    raise RuntimeError(f"the model's own command failed: {answer}")
            return answers[skipped:]
        return answers

    def carry_out(self, data: bytes, wanted: int) -> list[Any]:
        """Send commands, and return their answers."""
        self.calls += 1
        self._socket.sendall(data)
        reader, answers = self._reader, []
        gets, receive = reader.gets, self._socket.recv
        while len(answers) < wanted:
            answer = gets()
            if answer is False:
                got = receive(262144)
                if not got:
                    raise RuntimeError("the model's server has closed the connection")
                reader.feed(got)
            else:
                answers.append(answer)
        return answers

    def one(self, *command: Any) -> Any:
        (answer,) = self.call(pack(command), 1)
        if isinstance(answer, hiredis.ReplyError):
            raise RuntimeError(f"{command}: {answer}")
        return answer

    def close(self) -> None:
        self._socket.close()


class ModelServer:
    """An explorer process's Valkey, on a Unix socket, without persistence.

    Database 0 is the broker's, 1 has the results in scenarios with two servers, 2 is a snapshot.
    """

    def __init__(self, mutant: tuple[str, str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="greenq-model-")
        path = str(Path(self._folder.name, "s"))
        self._process = subprocess.Popen(
            [
                *(str(valkey_binary()), "--port", "0", "--unixsocket", path, "--save", ""),
                *("--appendonly", "no", "--dir", self._folder.name, "--databases", "4"),
                *("--hz", "1", "--logfile", "log", "--maxmemory", "500mb"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.past = Past()
        ends_s = time.monotonic() + 10
        while True:
            try:
                self.links = [Link(path, number, self.past) for number in range(3)]
                break
            except OSError:
                if time.monotonic() > ends_s:
                    raise
                select.select((), (), (), 0.005)
        self.shas: dict[str, str] = {}
        self.past.most = 0
        for file in LUA.glob("*.lua"):
            self.load(file.stem, file.read_text("utf-8"), mutant)
        self.past.most = _REMEMBERED

    def load(self, name: str, source: str, mutant: tuple[str, str, str] | None) -> None:
        """Load a script with the model's clock in place of the server's."""
        if mutant is not None and mutant[0] == name:
            assert source.count(mutant[1]) == 1, (
                f"{mutant[1]!r} does not occur exactly once in {name}.lua"
            )
            source = source.replace(mutant[1], mutant[2])
        code = "\n".join(line.partition("--")[0] for line in source.splitlines())
        assert ("'TIME'" in code) == (_TIME in code), f"{name}.lua reads the time in a new way"
        if _TIME in code:
            CLOCKED.add(name)
            source = source.replace(_TIME, _CLOCK)
        else:
            assert name not in {"take", "lease", "promote"}, f"{name}.lua has lost its clock"
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        loaded = self.links[0].one("SCRIPT", "LOAD", source).decode()
        assert loaded == sha
        self.shas[name] = sha

    def close(self) -> None:
        for link in self.links:
            link.close()
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            self._folder.cleanup()


_KINDS = {
    "settle": "write", "lease": "renew", "publish_once": "push_once", "HEXISTS": "ask",
    "HGETALL": "paused", "SADD": "push", "LPUSH": "push", "SETEX": "write",
    "CLIENT": "track",
}  # fmt: skip


def translated(exc: hiredis.ReplyError, name: str) -> Exception:
    text = str(exc)
    if text.startswith("NOPERM"):
        return AccessRefused(text)
    return ServerError(name, text)


class SimConnection:
    """`greenq.transport.client.Connection`."""

    numbers = 0

    def __init__(self, client: SimClient, *, pushes: bool = False) -> None:
        self.client = client
        self.link = client.link
        self.pushes = pushes
        self.noticed = False
        self.ends_s: float | None = None
        self.used_at = 0.0
        self.connected = False
        self.number: int | None = None
        self._blocking: tuple[str, str] | None = None
        self.waiting: Op | None = None

    def connect(self) -> bool:
        if self.connected:
            return False
        self.connected = True
        self.noticed = self.pushes
        self.number = None
        return True

    def identify(self) -> None:
        self.connect()
        if self.number is None:
            self.number = self.client.number(self)

    def close(self) -> None:
        self.connected = False
        op = self.waiting
        if op is not None:
            # A waiter here sees the end of the connection.
            self.waiting = None
            kernel = op.actor.kernel
            kernel.forget(op)
            kernel.world.unblock(op)
            if op.actor is not greenlet.getcurrent():
                kernel.ready.append((op.actor, ConnectionLost("closed")))

    def check_rested(self) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def has_answer(self) -> bool:
        return False

    def messages(self, timeout_s: float = 0.0) -> list[Any]:
        return []

    def subscribe(self, *_args: Any, **_options: Any) -> None:
        self.connect()

    unsubscribe = subscribe

    def call(self, *command: Any) -> Any:
        return self.pipeline((command,))[0]

    def pipeline(self, commands: Sequence[Any], *, optional: int = 0) -> list[Any]:
        answers = self.try_pipeline(commands)
        for answer in answers[: len(answers) - optional]:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def try_pipeline(self, commands: Sequence[Any]) -> list[Any]:
        self.connect()
        first = commands[0]
        name = first[0]
        constant = self.client.constant(first)
        if constant is not None:
            return [constant]
        return self._park(name, _KINDS.get(name, name.lower()), commands, "")

    def script(self, script: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.connect()
        name = script.name
        sha = self.client.server.shas[name]
        command = ("EVALSHA", sha, len(keys), *keys, *args)
        (answer,) = self._park(name, _KINDS.get(name, name), (command,), name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _park(self, name: str, kind: str, commands: Sequence[Any], script: str) -> list[Any]:
        actor = greenlet.getcurrent()
        if kind == "write" and actor.role == "watch":
            kind = "give"
        op = Op(actor, kind)
        op.connection = self
        op.commands = commands
        op.count = len(commands)
        op.data = b"".join(map(pack, commands))
        op.script = script
        answers: list[Any] = actor.kernel.park(op)
        for i, answer in enumerate(answers):
            if isinstance(answer, hiredis.ReplyError):
                answers[i] = translated(answer, name)
        return answers

    # --- a wait on a list -------------------------------------------------------------------------

    def send(self, commands: Sequence[Any]) -> None:
        self.connect()
        ((name, source, inbox, *_rest),) = commands
        assert name == "BLMOVE"
        self._blocking = source, inbox

    def receive(self, name: str, *, push: bool = False, timeout_s: float | None = None) -> Any:
        assert name == "BLMOVE"
        assert self._blocking is not None
        actor = greenlet.getcurrent()
        op = Op(actor, "block")
        op.state = "new"
        op.connection = self
        source, inbox = self._blocking
        op.data, op.count = pack(("LMOVE", source, inbox, "RIGHT", "LEFT")), 1
        op.value = source
        self.waiting = op
        answer = actor.kernel.park(op)
        self.waiting = None
        if isinstance(answer, Exception):
            raise answer
        return answer


class SimClient:
    """`greenq.transport.client.Client`, shared by all; the greenlet identifies the caller."""

    address = "model"
    call_timeout_s = 5.0

    def __init__(self, server: ModelServer, number: int) -> None:
        self.server = server
        self.link = server.links[number]
        self.index = number
        self._numbers = 0
        self._connections: dict[int, SimConnection] = {}

    def reset(self) -> None:
        self._numbers = 0
        self._connections.clear()

    def number(self, connection: SimConnection) -> int:
        self._numbers += 1
        self._connections[self._numbers] = connection
        return self._numbers

    def connection(self, **options: Any) -> SimConnection:
        return SimConnection(self, pushes=options.get("pushes", False))

    @contextmanager
    def pooled(
        self, timeout_s: float | None = None, *, patient: bool = False
    ) -> Iterator[SimConnection]:
        yield SimConnection(self)

    def call(self, *command: Any, timeout_s: float | None = None, patient: bool = False) -> Any:
        if command[:2] == ("CLIENT", "UNBLOCK"):
            return self._unblock(command[2])
        return SimConnection(self).call(*command)

    def pipeline(
        self, commands: Sequence[Any], *, optional: int = 0, timeout_s: float | None = None
    ) -> list[Any]:
        return SimConnection(self).pipeline(commands, optional=optional)

    def script(
        self,
        script: Any,
        keys: Any,
        args: Any,
        *,
        timeout_s: float | None = None,
        patient: bool = False,
    ) -> Any:
        return SimConnection(self).script(script, keys, args)

    def close(self) -> None:
        pass

    def constant(self, command: Any) -> Any:
        """Return an answer that only the model determines, without a round trip, or None."""
        if command[0] == "TIME":
            world = greenlet.getcurrent().kernel.world
            return [b"%d" % int(world.now), b"%d" % round(world.now % 1 * 1e6)]
        if command[0] == "INFO":
            return b"uptime_in_seconds:1000000\r\n"
        if command[0] == "PUBLISH":
            return 0
        return None

    def _unblock(self, number: int | None) -> int:
        connection = self._connections.get(number or 0)
        op = None if connection is None else connection.waiting
        if op is None or op.done:
            return 0
        kernel = op.actor.kernel
        value = op.value if op.state == "served" else None
        was = op.state
        kernel.forget(op)
        kernel.world.unblock(op)
        kernel.ready.append((op.actor, value))
        return int(was != "served")


def lost(late: bool) -> Exception:
    """Return the error of a caller whose answer is lost."""
    if late:
        return TransportTimeout("timed out by the model")
    return ConnectionLost("cut by the model")
