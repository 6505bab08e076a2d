"""The shipped supervisord configuration, under a real supervisord."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from greenq import Greenq
from tests.servers import Server
from tests.supervisord import PATIENCE_S, Supervisord, ledger, supervisord
from tests.support import wait_until

STEPS = ("draining", "stopping", "starting", "ready")


@pytest.fixture
def supervisor(server: Server) -> Iterator[Supervisord]:
    with supervisord(server) as started:
        yield started


def test_supervisord_runs_a_worker_and_starts_a_killed_one_anew(
    supervisor: Supervisord, server: Server
) -> None:
    app = Greenq("sender", broker=server.url)
    first = supervisor.pid()
    assert app.send_task("shared.add", (1, 2)).get(timeout=10) == 3

    os.kill(first, signal.SIGKILL)

    wait_until(lambda: supervisor.pid() not in {0, first}, 30)
    assert app.send_task("shared.add", (3, 4)).get(timeout=20) == 7


def test_supervisord_restarts_warm(supervisor: Supervisord, server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    running = app.send_task("shared.sleep", (1.0, "done"))
    wait_until(lambda: running.id in supervisor.log(), 10)

    assert "started" in supervisor.control("restart", "greenq:greenq-0")

    assert running.get(timeout=10) == "done"
    server.wait_settled()
    assert "warm shutdown: 1 tasks are running" in supervisor.log()


def test_a_rolling_restart_of_one_worker(supervisor: Supervisord) -> None:
    done = supervisor.greenq("deploy", "restart", "-A", "greenq_app", "-c", str(supervisor.config))

    assert done.stdout.splitlines()[-1] == "1 worker was restarted", done.stderr


def _settle(server: Server, count: int) -> None:
    """Wait until all tasks have run, and check that each has run once."""
    wait_until(lambda: len(ledger(server)) == count, PATIENCE_S)
    server.wait_settled(PATIENCE_S)
    assert set(ledger(server).values()) == {1}


class Load:
    """Sends short tasks all the time, from a thread."""

    def __init__(self, server: Server) -> None:
        self.count = 0
        self._app = Greenq("sender", broker=server.url)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._ends.wait(0.02):
            for _ in range(4):
                self._app.send_task("ledger.nap", (str(self.count), 0.2), ignore_result=True)
                self.count += 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ends.set()
        self._thread.join()


@pytest.fixture
def two(server: Server) -> Iterator[Supervisord]:
    """A group of two workers that both run."""
    with supervisord(server, "--processes", "2,2", app="release") as started:
        started.wait_running("greenq-0", "greenq-1")
        yield started


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_rolling_restart_under_load_loses_nothing_and_repeats_nothing(
    two: Supervisord, server: Server
) -> None:
    names = ("greenq:greenq-0", "greenq:greenq-1")
    before = [two.pid(name) for name in names]

    with Load(server) as load:
        wait_until(lambda: len(ledger(server)) > 50, PATIENCE_S)
        done = two.greenq("deploy", "restart", "-A", "ledger_app", "-c", str(two.config))
        at_the_end = len(ledger(server))
        wait_until(lambda: len(ledger(server)) > at_the_end + 20, PATIENCE_S)

    assert done.returncode == 0, done.stderr
    steps = [f"greenq-{n}: {step}" for n in (0, 1) for step in STEPS]
    assert done.stdout.splitlines() == [*steps, "2 workers were restarted"]
    assert not {two.pid(name) for name in names} & {*before, 0}
    _settle(server, load.count)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_supervisorctl_restart_under_load_loses_nothing_and_repeats_nothing(
    two: Supervisord, server: Server
) -> None:
    with Load(server) as load:
        wait_until(lambda: len(ledger(server)) > 50, PATIENCE_S)
        assert "ERROR" not in two.control("restart", "greenq:*")
        at_the_end = len(ledger(server))
        wait_until(lambda: len(ledger(server)) > at_the_end + 20, PATIENCE_S)

    _settle(server, load.count)


def test_a_rolling_restart_stops_at_a_worker_that_does_not_come_up(
    two: Supervisord, server: Server
) -> None:
    second = two.pid("greenq:greenq-1")
    two.release.write_text("raise RuntimeError('a bad release')\n")

    done = two.greenq("deploy", "restart", "-A", "ledger_app", "-c", str(two.config))

    assert done.returncode == 1
    assert "not restarted: greenq-1" in done.stderr
    assert two.pid("greenq:greenq-1") == second


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-c", "/nowhere/supervisord.conf"), "no address of supervisord in /nowhere"),
        (("--url", "unix:///nowhere/s.sock"), "does not answer"),
        (("--url", "ftp://x"), "is not an address of supervisord"),
    ],
)
def test_a_restart_without_supervisord_says_so(
    server: Server, words: tuple[str, ...], said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "greenq", "deploy", "restart", "-b", server.url, *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_listener_restarts_a_frozen_worker_and_its_task_runs_elsewhere(server: Server) -> None:
    def quick(text: str) -> str:
        return (
            text.replace("--mute-after 60", "--mute-after 8")
            .replace("stopwaitsecs=40", "stopwaitsecs=2")
            .replace("-l INFO", "-l DEBUG")
        )

    with supervisord(server, app="ledger_app", edit=quick) as supervisor:
        app = Greenq("sender", broker=server.url)
        app.send_task("ledger.nap", ("well", 0.0)).get(timeout=20)
        first = supervisor.pid()
        # The listener must have heard it once.
        wait_until(lambda: "control: ping" in supervisor.log(), PATIENCE_S)

        os.kill(first, signal.SIGSTOP)

        wait_until(lambda: supervisor.pid() not in (0, first), 2 * PATIENCE_S)
        assert "restarting greenq-0: it has not answered a ping" in supervisor.log(
            "greenq-listener"
        )
        app.send_task("ledger.nap", ("again", 0.0)).get(timeout=PATIENCE_S)


@pytest.mark.timeout(240)
def test_the_listener_restarts_a_large_worker_warm(server: Server) -> None:
    with supervisord(
        server, app="ledger_app", edit=lambda text: text.replace("-memory 2G", "-memory 1M")
    ) as supervisor:
        first = supervisor.pid()
        wait_until(lambda: supervisor.pid() not in (0, first), PATIENCE_S)

        said = supervisor.log("greenq-listener")
        assert "restarting greenq-0: it uses" in said
        assert "more than 1 MB" in said
        assert "warm shutdown" in supervisor.log()


def test_the_listener_needs_supervisord(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "greenq", "supervisor-listener", "-b", server.url],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env={name: os.environ[name] for name in os.environ if "SUPERVISOR" not in name},
    )  # fmt: skip

    assert done.returncode == 1
    assert "supervisord starts this command, as an [eventlistener]" in done.stderr
