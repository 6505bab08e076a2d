"""Tasks that write down each time they run, and ways to trouble their worker.

Those for short tests write in the server; those of the long fault tests in the file TEST_LEDGER,
which stays what it is when the server fails.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time

from greenq import Greenq, Task

app = Greenq("ledger", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))


def _write(what: str) -> None:
    app.transport.client.call("RPUSH", "ledger", f"{what} {os.getpid()}")


@app.task(name="ledger.nap")
def nap(what: str, seconds: float) -> str:
    _write(what)
    time.sleep(seconds)
    return what


@app.task(name="ledger.wait")
def wait(what: str) -> str:
    """Run until the key `gate` is there."""
    _write(what)
    while not app.transport.client.call("EXISTS", "gate"):
        time.sleep(0.05)
    return what


@app.task(name="ledger.burn")
def burn(what: str, seconds: float) -> str:
    """Compute without ever yielding to the hub."""
    _write(what)
    _compute(seconds)
    return what


_kept: list[bytearray] = []


@app.task(name="ledger.keep")
def keep(megabytes: int) -> None:
    """Use memory and never free it."""
    _kept.append(bytearray(b"x" * (megabytes * 1024 * 1024)))


@app.task(name="ledger.hold")
def hold(what: str, seconds: int) -> str:
    """Hold the GIL in a C call: no Python runs in this process meanwhile."""
    _write(what)
    ctypes.PyDLL(None).sleep(seconds)
    return what


@app.task(name="ledger.breed")
def breed(what: str) -> int:
    """Leave a forked child behind, with whatever a fork inherits, that lives for a minute."""
    _write(what)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        # Not a sleep, in which the hub would go on as a second worker.
        signal.pause()
        os._exit(0)
    return pid


@app.task(name="ledger.kill")
def kill(what: str) -> None:
    """End the worker as a crash would."""
    _write(what)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="ledger.entry_nap")
def entry_nap(number: int, seconds: float) -> int:
    """Wait, with a line in the file before and after."""
    _write_line("start", number)
    time.sleep(seconds)
    _write_line("end", number)
    return number


@app.task(name="ledger.entry_burn")
def entry_burn(number: int, seconds: float) -> int:
    """Compute without ever yielding to the hub, with a line in the file before and after."""
    _write_line("start", number)
    _compute(seconds)
    _write_line("end", number)
    return number


@app.task(name="ledger.entry_gil")
def entry_gil(number: int, seconds: float) -> int:
    """Let no thread of the worker run, as one long call into C does, between two lines."""
    _write_line("start", number)
    ctypes.PyDLL(None).sleep(int(seconds))
    _write_line("end", number)
    return number


@app.task(name="ledger.entry_crash")
def entry_crash(number: int, seconds: float) -> None:
    """End the worker as a segmentation fault would."""
    _write_line("start", number)
    time.sleep(seconds)
    os._exit(1)


@app.task(name="ledger.step", bind=True)
def step(self: Task, before: object, number: int, seconds: float, expected: object = None) -> int:
    """One task of a workflow: also write its delivery tag and whether it got `expected`."""
    tag = (self.request.properties or {})["delivery_tag"]
    with open(os.environ["TEST_LEDGER"] + ".tags", "a", encoding="ascii") as lines:
        lines.write(f"{number} {tag} {'right' if before == expected else 'wrong'}\n")
    return entry_nap(number, seconds)


def _compute(seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


def _write_line(event: str, number: int) -> None:
    # Appended in one write: lines of two workers do not mix. All processes have the same clock.
    with open(os.environ["TEST_LEDGER"], "a", encoding="ascii") as lines:
        lines.write(f"{event} {number} {os.getpid()} {time.monotonic():.4f}\n")
