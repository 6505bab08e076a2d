"""Tasks that write down in the server each time they run, and ways to trouble their worker."""

from __future__ import annotations

import json
import os
import signal
import time

from greenq import Greenq

app = Greenq("ledger", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))


def _write(what: str) -> None:
    app.transport.client.call("RPUSH", "ledger", f"{what} {os.getpid()}")


@app.task(name="ledger.nap")
def nap(what: str, seconds: float) -> str:
    _write(what)
    time.sleep(seconds)
    return what


@app.task(name="ledger.burn")
def burn(what: str, seconds: float) -> str:
    """Compute without ever yielding to the hub."""
    _write(what)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass
    return what


@app.task(name="ledger.kill")
def kill(what: str) -> None:
    """End the worker as a crash would."""
    _write(what)
    os.kill(os.getpid(), signal.SIGKILL)
