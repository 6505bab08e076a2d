"""Promise: what a silent worker holds runs nowhere else, what a dead one held, at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from greenq import Greenq
from greenq.transport.embedded.server import EmbeddedServer
from greenq.watchdog.guard_process import GuardProcess
from tests.integration.test_security import tls_front
from tests.servers import ROOT, Process, Server, greenq_worker, valkey
from tests.support import FairTime, wait_until

WAIT_S = 30

LEASES = "greenq.leases"

# No worker of a server this young believes that another one is dead: twice the lease.
YOUNG_S = 10

# As by default, although the machine is busy.
LEASE = {"worker_lease": 3.0}

# Longer than a lease, and than others take to look.
SILENCE_S = 11


@pytest.fixture(scope="module")
def elder() -> Iterator[Server]:
    """Run a server that is old enough for recovery from the first moment on."""
    with valkey() as server:
        wait_until(lambda: server.client.info("server")["uptime_in_seconds"] > YOUNG_S, WAIT_S)
        yield server


@pytest.fixture
def app(elder: Server) -> Iterator[Greenq]:
    elder.flush()
    client = Greenq("sender", broker=elder.url, set_as_current=False)
    yield client
    client.close()


def runs(server: Server) -> Counter[str]:
    """Count the runs of each task."""
    return Counter(entry.decode().split()[0] for entry in server.client.lrange("ledger", 0, -1))


def open_gate(server: Server) -> None:
    """Let the tasks `ledger.wait` end."""
    server.client.set("gate", 1)


def guard_of(worker: Process) -> int:
    """Return the process id of a worker's guard."""
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text("ascii").split()
    (guard,) = (pid for pid in children if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return int(guard)


def runs_now(pid: int) -> bool:
    """Tell whether a process is there and no zombie, for which somebody else is to blame."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@contextmanager
def stopped(worker: Process) -> Iterator[None]:
    worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send_signal(signal.SIGCONT)


def test_what_a_stopped_worker_holds_runs_once(elder: Server, app: Greenq) -> None:
    with greenq_worker(elder.url, "-n", "first", app="ledger_app", settings=LEASE) as first:
        results = [app.send_task("ledger.wait", (f"t{i}",)) for i in range(20)]
        wait_until(lambda: len(runs(elder)) == 20, WAIT_S)
        with greenq_worker(elder.url, "-n", "second", app="ledger_app", settings=LEASE) as second:
            with stopped(first):
                time.sleep(SILENCE_S)
            open_gate(elder)
            assert [result.get(timeout=WAIT_S) for result in results]
            elder.wait_settled()
            assert set(runs(elder).values()) == {1}
            assert "received" not in second.text
        assert "lost its lease" not in first.text


def test_what_a_worker_holds_beside_a_call_that_holds_the_gil_runs_once(
    elder: Server, app: Greenq
) -> None:
    queues = ("-Q", "celery,own")
    with greenq_worker(
        elder.url, "-n", "first", *queues, app="ledger_app", settings=LEASE
    ) as first:
        results = [app.send_task("ledger.wait", (f"t{i}",)) for i in range(20)]
        wait_until(lambda: len(runs(elder)) == 20, WAIT_S)
        with greenq_worker(elder.url, "-n", "second", app="ledger_app", settings=LEASE):
            results.append(app.send_task("ledger.hold", ("holds", SILENCE_S), queue="own"))
            wait_until(lambda: "holds" in runs(elder), WAIT_S)
            open_gate(elder)
            assert [result.get(timeout=2 * WAIT_S) for result in results]
            elder.wait_settled()
            assert set(runs(elder).values()) == {1}
        assert "lost its lease" not in first.text


@pytest.mark.parametrize("task", ["ledger.nap", "ledger.breed"])
def test_a_killed_workers_tasks_run_elsewhere_within_two_seconds(
    elder: Server, app: Greenq, task: str
) -> None:
    with greenq_worker(elder.url, "-n", "first", app="ledger_app") as first:
        if task == "ledger.breed":
            # A child that has inherited what there is to inherit outlives the worker.
            app.send_task(task, ("breeds",)).get(timeout=WAIT_S)
        results = [app.send_task("ledger.wait", (f"t{i}",)) for i in range(20)]
        wait_until(lambda: len(runs(elder)) >= 20, WAIT_S)
        guard = guard_of(first)
        with greenq_worker(elder.url, "-n", "second", app="ledger_app"):
            os.kill(first.pid, signal.SIGKILL)
            killed = FairTime()
            wait_until(lambda: [runs(elder)[f"t{i}"] for i in range(20)] == [2] * 20, WAIT_S)
            waited_s = killed.passed_s()
            open_gate(elder)
            assert [result.get(timeout=WAIT_S) for result in results]
        wait_until(lambda: not runs_now(guard), WAIT_S)
        first.kill()
    # The guard's start of its client, the second's next look, and the machine's own slowness.
    assert waited_s < 2


def test_a_stopped_worker_leaves_neither_a_guard_nor_a_lease(elder: Server, app: Greenq) -> None:
    with greenq_worker(elder.url, app="ledger_app") as worker:
        wait_until(lambda: elder.client.zcard(LEASES) == 1, WAIT_S)
        guard = guard_of(worker)
        assert runs_now(guard)
        assert worker.stop() == 0
        assert not runs_now(guard)
        assert not elder.client.exists(LEASES)
        assert "WARNING/Guard" not in worker.text


def test_signals_to_everything_that_is_named_greenq_end_no_guard(
    elder: Server, app: Greenq
) -> None:
    with greenq_worker(elder.url, app="ledger_app") as worker:
        wait_until(lambda: elder.client.zcard(LEASES) == 1, WAIT_S)
        guard = guard_of(worker)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(guard, number)
        os.kill(worker.pid, signal.SIGKILL)
        # It still did its duty.
        wait_until(lambda: elder.client.zrange(LEASES, 0, -1, withscores=True)[0][1] == 0, WAIT_S)
        wait_until(lambda: not runs_now(guard), WAIT_S)


def test_silence_has_a_limit(elder: Server, app: Greenq) -> None:
    settings = {"worker_lease": 6.0, "worker_silence_limit": 9.0}
    with greenq_worker(elder.url, "-n", "first", app="ledger_app", settings=settings) as first:
        result = app.send_task("ledger.wait", ("again",))
        wait_until(lambda: runs(elder), WAIT_S)
        with greenq_worker(elder.url, "-n", "second", app="ledger_app", settings=settings):
            with stopped(first):
                stopped_s = time.monotonic()
                wait_until(lambda: runs(elder)["again"] == 2, WAIT_S)
                assert time.monotonic() - stopped_s > 9.0
                open_gate(elder)
                assert result.get(timeout=WAIT_S) == "again"
            assert first.text.count("no Python code has run in the worker for") == 1
            assert "(worker_silence_limit)" in first.text
            first.wait_text("lost its lease")


# --- the guard alone ------------------------------------------------------------------------------


@contextmanager
def guarding(url: str, **settings: float) -> Iterator[GuardProcess]:
    """Have this process guarded."""
    limits = {"lease_s": 2.0, "silence_limit_s": 60.0} | settings
    guard = GuardProcess(url, key="leases", member="me|node|process", **limits)
    guard.start()
    try:
        yield guard
    finally:
        guard.stop()


def lease(server: Server, lasts_s: float) -> float:
    """Write a lease as of now, and return when it ends."""
    seconds, microseconds = server.client.time()
    ends = seconds + microseconds / 1e6 + lasts_s
    server.client.zadd("leases", {"me|node|process": ends})
    return ends


def wait_kept(server: Server, ends: float, times: int = 1) -> None:
    """Wait until the lease that was to end then has been written anew, again and again."""
    seen = [ends]

    def written() -> bool:
        score = server.client.zscore("leases", "me|node|process")
        assert score is not None
        if score != seen[-1]:
            seen.append(score)
        return len(seen) > times

    wait_until(written, WAIT_S)


@pytest.mark.parametrize("scheme", ["redis", "valkey", "rediss"])
def test_it_speaks_as_the_worker_does(tmp_path: Path, scheme: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with valkey(password="p@ss") as server, tls_front(server, authority, "localhost") as port:
        server.url = f"redis://:p%40ss@127.0.0.1:{server.port}/0"
        url = f"{scheme}://:p%40ss@127.0.0.1:{server.port}/0"
        if scheme == "rediss":
            url = f"rediss://:p%40ss@localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem"
        with guarding(url) as guard:
            told = Path(f"/proc/{guard.pid}/cmdline").read_bytes()
            told += Path(f"/proc/{guard.pid}/environ").read_bytes()
            assert b"p%40ss" not in told
            ends = lease(server, 60.0)
            guard.beat()
            wait_kept(server, ends, times=3)


def test_it_speaks_to_the_embedded_server(tmp_path: Path) -> None:
    embedded = EmbeddedServer(tmp_path / "data")
    server = Server(tmp_path)
    server.url = f"unix://{embedded.acquire()}"
    try:
        with guarding(server.url) as guard:
            ends = lease(server, 60.0)
            guard.beat()
            wait_kept(server, ends, times=3)
        server.client.close()
    finally:
        embedded.release()


def test_what_has_ended_stays_ended_and_what_is_gone_stays_gone(elder: Server) -> None:
    elder.flush()
    with guarding(elder.url) as guard:
        ends = lease(elder, -0.1)
        tried = tries(elder)
        guard.beat()
        wait_until(lambda: tries(elder) > tried, WAIT_S)
        assert elder.client.zscore("leases", "me|node|process") == ends
        elder.flush()
        tried = tries(elder)
        guard.beat()
        wait_until(lambda: tries(elder) > tried, WAIT_S)
        assert not elder.client.exists("leases")
        wait_until(lambda: clients(elder) == 0, WAIT_S)


def tries(server: Server) -> int:
    """Count the scripts that have been called by now; one at rest calls none."""
    called = server.client.info("commandstats").get("cmdstat_eval", {"calls": 0})
    return int(called["calls"])


def clients(server: Server) -> int:
    """Count the guards' connections."""
    return sum(client["name"] == "greenq-guard" for client in server.client.client_list())


# A worker that dies while its guard's interpreter still starts.
SHORT_LIVED = """
import os, signal, sys
from greenq.watchdog.guard_process import GuardProcess
limits = {"lease_s": 60.0, "silence_limit_s": 60.0}
GuardProcess(sys.argv[1], key="leases", member="me|node|process", **limits).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_dies_before_its_guard_runs_leaves_no_lease(elder: Server) -> None:
    elder.flush()
    lease(elder, 60.0)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SHORT_LIVED, elder.url]
    assert subprocess.run(command, env=env, check=False).returncode == -signal.SIGKILL
    wait_until(lambda: elder.client.zscore("leases", "me|node|process") == 0, WAIT_S)


def test_it_rests_when_the_worker_speaks_again(elder: Server) -> None:
    elder.flush()
    with guarding(elder.url) as guard:
        ends = lease(elder, 60.0)
        guard.beat()
        wait_kept(elder, ends)
        assert clients(elder) == 1
        guard.beat()
        wait_until(lambda: clients(elder) == 0, WAIT_S)


def test_a_server_that_comes_back_in_time_finds_the_lease_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with valkey() as server, guarding(server.url, lease_s=1.0) as guard:
        ends = lease(server, 30.0)
        server.stop()
        guard.beat()
        said = ""

        def has_said() -> bool:
            nonlocal said
            said += capfd.readouterr().err
            return "could not extend the lease of the silent worker: cannot reach " in said

        wait_until(has_said, WAIT_S)
        server.start()
        wait_until(lambda: server.client.zscore("leases", "me|node|process") < ends, WAIT_S)
        assert (said + capfd.readouterr().err).count("could not extend the lease") == 1


def test_a_guard_that_was_killed_is_started_again(
    elder: Server, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    guard = GuardProcess(
        elder.url, key="leases", member="me|node|process", lease_s=1.0, silence_limit_s=60.0,
        clock=lambda: now_s,
    )  # fmt: skip
    guard.start()
    try:
        first = guard.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not runs_now(first))
        now_s = 9.0
        guard.beat()
        assert guard.pid is None
        assert not Path(f"/proc/{first}").exists()
        now_s = 10.0
        guard.beat()
        assert guard.pid not in (None, first)
        ends = lease(elder, 60.0)
        wait_kept(elder, ends)
        assert caplog.text.count("has ended; it is started again") == 1
    finally:
        now_s = 0.0
        guard.stop()


def test_one_that_does_not_read_delays_no_beat(elder: Server) -> None:
    with guarding(elder.url) as guard:
        pid = guard.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        began_s = time.monotonic()
        for _ in range(100_000):
            guard.beat()
        assert time.monotonic() - began_s < 5
        assert guard.pid == pid
    # Nor does it stay behind.
    assert not runs_now(pid)
