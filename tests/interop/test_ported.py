"""Programs written for Celery, and the same with their imports changed: both do the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import ROOT, Process, Server

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PORTED = ROOT / "tests" / "interop" / "ported"

# Each program, and the queues that its workers take from.
PROGRAMS = {"mailer": "default,urgent,bulk", "scraper": "celery", "webapp": "celery"}


def environment(kind: str, url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GREENQ_")}
    path = os.pathsep.join(map(str, (ROOT, PORTED / f"on_{kind}", PORTED)))
    # Celery refuses the superuser otherwise, whom containers often run tests as.
    return kept | {"PYTHONPATH": path, "TEST_BROKER": url, "NO_COLOR": "1", "C_FORCE_ROOT": "1"}


@contextmanager
def worker(kind: str, program: str, url: str) -> Iterator[Process]:
    """Run a program's worker as its author would."""
    if kind == "celery":
        command = ["celery", "-A", program, "worker", "-c", "4"]
        command += ["--without-mingle", "--without-gossip"]
    else:
        command = ["greenq", "worker", "-A", program, "-c", "50"]
    command = [sys.executable, "-m", *command, "-l", "INFO", "-Q", PROGRAMS[program]]
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        started = Process(command, Path(folder, "log"), environment(kind, url), ROOT)
        try:
            yield started.wait_text(" ready." if kind == "celery" else "Connected to ")
        except BaseException:
            sys.stderr.write(f"--- log of {kind}\n{started.text}\n")
            raise
        finally:
            started.stop()


def seen(kind: str, program: str, server: Server) -> dict[str, Any]:
    """Return what a program's `demo` finds with a worker of the same kind."""
    server.flush()
    code = f"import json, {program}; print('FOUND', json.dumps({program}.demo()))"
    with worker(kind, program, server.url):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(kind, server.url),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.partition("FOUND ")[2])
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_does_the_same_on_both(program: str, server: Server) -> None:
    on_celery = seen("celery", program, server)
    on_greenq = seen("greenq", program, server)
    # One after the other, so that all that differs is shown with its name.
    differing = {
        name: (value, on_greenq.get(name, "nothing"))
        for name, value in on_celery.items()
        if on_greenq.get(name, "nothing") != value
    }
    assert differing == {}, json.dumps(differing, indent=1)
    assert on_greenq.keys() == on_celery.keys()


@pytest.mark.parametrize("program", PROGRAMS)
def test_only_the_imports_were_changed(program: str) -> None:
    def without_imports(kind: str) -> list[str]:
        lines = (PORTED / f"on_{kind}" / f"{program}.py").read_text("utf-8").splitlines()
        return [line for line in lines if line and not line.startswith(("import ", "from "))]

    assert without_imports("greenq") == without_imports("celery")
