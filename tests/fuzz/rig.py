"""A real worker on a real server under hostile bytes, and what must be true after each batch."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import json
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from greenq import Greenq
from greenq.protocol.event import EXCHANGE as EVENTS
from greenq.protocol.mailbox import EXCHANGE as CONTROL
from greenq.states import REVOKED
from tests.fuzz.hostile import Case, make
from tests.servers import Process, Server, greenq_worker
from tests.support import wait_until

SETTINGS: dict[str, Any] = {
    # What is due later is put aside at once, so that nothing is left in hand.
    "task_eta_horizon": 0,
    "worker_hub_lag_warning": 5,
}
# Where the app of the worker notes what has run.
RAN = "fuzz:ran"

SETTLED_S = 60
_KEPT_BYTES = 64 << 10
STILL_S = 0.1
GROWTH_BYTES = 20 << 20

# What the worker says when something has happened that nobody has thought of.
_UNFORESEEN = (
    "could not admit a message", "was not handled", "was not answered", "without an outcome",
    "could not send the event for", "could not log the end of", "could not be settled", "crashed",
    "Logging error", "a timer call failed", "Fatal", "MemoryError",
)  # fmt: skip


class Broken(AssertionError):
    """Something that was promised did not hold."""


class Rig:
    """A worker and a client, and batches of cases for them."""

    def __init__(self, server: Server, worker: Process, app: Greenq) -> None:
        self.server = server
        self.worker = worker
        self.app = app
        self._read_until = 0
        # What is loaded once is there then, and memory for large messages.
        for case in batch("warm", 150):
            self._send(case)
        self._wait_settled()
        self._still_s()
        self._check_log()

    def run(self, cases: Sequence[Case]) -> str:
        """Send cases and wait for their ends; return what that has taken, in words.

        Raises:
            Broken: a promise was.
        """
        self.server.clear()
        before_bytes, own_bytes = _rss_bytes(self.worker.pid), _own_bytes()
        read_s = 0.0
        for case in cases:
            if case.kind == "result":
                read_s = max(read_s, self._read_result(case))
            else:
                self._send(case)
        self._wait_settled()
        self._check_fates([case for case in cases if case.kind == "message"])
        self._check_log()
        still_s, grown = self._still_s(), _rss_bytes(self.worker.pid) - before_bytes
        if grown > GROWTH_BYTES:
            raise Broken(f"the worker has grown by {grown >> 20} MiB")
        own_grown = _own_bytes() - own_bytes
        if own_grown > GROWTH_BYTES:
            raise Broken(f"the client has grown by {own_grown >> 20} MiB")
        if still_s > STILL_S:
            raise Broken(f"the hub stood still for {still_s:.3f} s of processor time")
        if read_s > STILL_S:
            raise Broken(f"reading a result took {read_s:.3f} s of processor time")
        return f"{still_s * 1000:.0f} ms still, {grown / (1 << 20):+.1f} MiB"

    def _send(self, case: Case) -> None:
        keys, client = self.app.transport.keys, self.server.client
        if case.kind == "message":
            client.lpush("celery", case.raw)
        elif case.kind == "event":
            client.publish(keys.fanout(EVENTS, case.channel), case.raw)
        elif case.kind == "control":
            client.publish(keys.fanout(CONTROL), case.raw)

    def _read_result(self, case: Case) -> float:
        """Read a result as a program does, and return the seconds of processor time.

        Raises:
            Broken: something other than an `Exception` came out of it.
        """
        self.server.client.set(f"celery-task-meta-{case.mark}", case.raw)
        result = self.app.AsyncResult(case.mark)
        began_s = time.thread_time()
        try:
            result.maybe_throw()
        except Exception as exc:
            with contextlib.suppress(Exception):
                str(exc)
        except BaseException as exc:
            raise Broken(f"{case.name} ({case.about}): get() raised {exc!r}") from exc
        return time.thread_time() - began_s

    # --- what must be true ------------------------------------------------------------------------

    def _wait_settled(self) -> None:
        def settled() -> bool:
            if not self.worker.alive:
                raise Broken(f"the worker has ended:\n{self.worker.text[-4000:]}")
            return not self.server.client.exists("celery", "unacked", "unacked_index")

        # Behind all others: when it has run, nothing is on its way from one key to another.
        if self._outcome_of_a_good_task() != "done":
            raise Broken("a good task has another result")
        try:
            wait_until(settled, SETTLED_S)
        except AssertionError as exc:
            if isinstance(exc, Broken):
                raise
            raise Broken(f"not settled within {SETTLED_S} s: {self._left()}") from exc

    def _outcome_of_a_good_task(self) -> object:
        try:
            return self.app.send_task("fuzz_app.plain").get(timeout=SETTLED_S)
        except Exception as exc:
            raise Broken(f"a good task: {exc!r}\n{self.worker.text[-4000:]}") from exc

    def _left(self) -> str:
        client = self.server.client
        return f"{client.llen('celery')} queued, {client.hlen('unacked')} reserved"

    def _check_fates(self, cases: Sequence[Case]) -> None:
        letters = {letter.raw: letter.reason for letter in self.server.dead_letters()}
        ran = {mark.decode() for mark in self.server.client.smembers(RAN)}
        elsewhere = b"".join(self._elsewhere())
        for case in cases:
            # Of unreadable bytes, a letter keeps the beginning.
            reason = letters.get(case.raw, letters.get(case.raw[:_KEPT_BYTES]))
            if case.refused and (reason is None or case.refused not in reason):
                raise Broken(f"{case.name} ({case.about}) was not refused for it: {reason!r}")
            if case.runs and (reason is not None or case.mark not in ran):
                raise Broken(f"{case.name} ({case.about}) did not run: {reason!r}")
            known = reason is not None or case.mark in ran or case.mark.encode() in elsewhere
            if not known and not self._is_revoked(case):
                raise Broken(f"{case.name} ({case.about}) is nowhere")
            if reason == "":
                raise Broken(f"{case.name} ({case.about}) is a dead letter without a reason")

    def _is_revoked(self, case: Case) -> bool:
        """Tell whether an earlier command has revoked the id, which need not be the mark."""
        try:
            task_id = json.loads(case.raw)["headers"]["id"]
        except (ValueError, TypeError, KeyError):
            return False
        return isinstance(task_id, str) and self.app.AsyncResult(task_id).state == REVOKED

    def _elsewhere(self) -> Iterator[bytes]:
        """Give what else may become of a message: it is put aside, or a result says what it is."""
        client = self.server.client
        for key in client.scan_iter("greenq.eta.*"):
            yield from client.zrange(key, 0, -1)
        yield from client.scan_iter("celery-task-meta-*")

    def _check_log(self) -> None:
        """Look through what the worker has said since the last time."""
        text = self.worker.text
        new, self._read_until = text[self._read_until :], len(text)
        for words in _UNFORESEEN:
            if words in new:
                at = new.index(words)
                raise Broken(f"the worker says: {new[max(0, at - 300) : at + 3000]}")
        if ": ERROR" not in new and "ERROR/" not in new:
            return
        for line in new.splitlines():
            if "ERROR" in line and "control command" in line:
                raise Broken(f"the worker says: {new[new.index(line) :][:3000]}")

    def _still_s(self) -> float:
        replies = self.app.control.broadcast("fuzz_still", {}, reply=True, timeout=SETTLED_S)
        if not replies:
            raise Broken("the worker does not answer")
        ((longest_s,),) = [list(each.values()) for each in replies[:1]]
        return float(longest_s)


@contextmanager
def rig(server: Server) -> Iterator[Rig]:
    """Start a worker for hostile bytes."""
    server.flush()
    app = Greenq("fuzz", broker=server.url, set_as_current=False)
    try:
        with greenq_worker(server.url, "-c", "20", app="fuzz_app", settings=SETTINGS) as worker:
            yield Rig(server, worker, app)
    finally:
        app.close()


def batch(seed: str, size: int) -> list[Case]:
    """Make the cases of one seed."""
    return [make(seed, number) for number in range(size)]


def named(name: str) -> list[Case]:
    """Make the cases ``seed:from-to``, or ``seed:number``."""
    seed, _, numbers = name.rpartition(":")
    first, _, last = numbers.partition("-")
    return [make(seed, number) for number in range(int(first), int(last or first) + 1)]


def kept(path: Path) -> list[Case]:
    """Read cases from a file that `keep` has written."""
    lines = map(json.loads, path.read_text("ascii").splitlines())
    return [Case(**fields | {"raw": base64.b64decode(fields["raw"])}) for fields in lines]


def keep(cases: Sequence[Case], path: Path) -> None:
    """Write cases into a file, with their bytes: other versions may make others of a seed."""
    lines = [
        json.dumps(case._asdict() | {"raw": base64.b64encode(case.raw).decode()}) for case in cases
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "ascii")


def shown(case: Case) -> str:
    """Describe a case for people, with its bytes if they are few."""
    raw = case.raw if len(case.raw) < 3000 else case.raw[:300] + b"..."
    return f"{case.name} {case.kind}: {case.about}\n{raw!r}"


def _rss_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]
    return int(pages) * resource.getpagesize()


def _own_bytes() -> int:
    """Return what this process keeps: freed memory goes back to the system first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _rss_bytes(int(Path("/proc/self").resolve().name))
