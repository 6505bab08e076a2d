"""SIGHUP: the worker restarts in its own process, and no task is lost or runs twice."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from greenq import Greenq
from tests.servers import Process, Server, _environment, greenq_worker
from tests.support import wait_until

WAIT_S = 60


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


def wait_ready(worker: Process, times: int) -> None:
    """Wait until the worker has been ready so many times."""
    wait_until(lambda: worker.text.count("is ready") == times, WAIT_S)


def children(pid: int) -> set[int]:
    """Return the processes that a process has started."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(entry.name))
    return found


def pipes_and_sockets(pid: int) -> set[str]:
    """Return the open pipes and sockets of a process; each has a number of its own."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return {name for name in found if name.startswith(("pipe:", "socket:"))}


def test_nothing_is_lost_or_runs_twice_over_restarts(server: Server, client: Greenq) -> None:
    options = ("-c", "20")
    with greenq_worker(server.url, *options, app="ledger_app") as worker:
        pid, sent = worker.pid, 0
        before: set[str] = set()
        for restart in range(1, 5):
            wait_ready(worker, restart)
            before |= pipes_and_sockets(pid)
            for _ in range(100):
                client.send_task("ledger.nap", (f"t{sent}", 0.2))
                sent += 1
            begun = sent - 60
            wait_until(lambda begun=begun: server.client.llen("ledger") > begun, WAIT_S)
            worker.send_signal(signal.SIGHUP)
        wait_ready(worker, 5)
        server.wait_settled(WAIT_S)
        lines = [line.decode().split() for line in server.client.lrange("ledger", 0, -1)]
        assert Counter(what for what, _pid in lines) == {f"t{n}": 1 for n in range(sent)}
        assert {number for _what, number in lines} == {str(pid)}
        # One lease, one guard, and nothing left of those before.
        assert server.client.zcard("greenq.leases") == 1
        assert len(children(pid)) == 1
        assert not before & pipes_and_sockets(pid)


def test_it_finishes_what_runs_and_gives_back_the_rest(server: Server, client: Greenq) -> None:
    settings = {"worker_prefetch_multiplier": 2}
    with greenq_worker(server.url, "-c", "1", app="ledger_app", settings=settings) as worker:
        sent = [client.send_task("ledger.wait", (name,)) for name in ("a", "b", "c")]
        worker.wait_text(f"[{sent[1].id}] received")
        worker.send_signal(signal.SIGHUP)
        worker.wait_text("SIGHUP; a restart follows")
        # A second one while it stops changes nothing.
        worker.send_signal(signal.SIGHUP)
        wait_until(lambda: server.queued_ids() == [sent[1].id, sent[2].id], WAIT_S)
        server.client.set("gate", 1)
        assert [each.get(timeout=WAIT_S) for each in sent] == ["a", "b", "c"]
        assert server.client.llen("ledger") == 3
        assert worker.text.count("SIGHUP; a restart follows") == 1


def test_a_stop_while_it_finishes_is_no_restart(server: Server, client: Greenq) -> None:
    with greenq_worker(server.url, app="ledger_app") as worker:
        result = client.send_task("ledger.wait", ("a",))
        worker.wait_text("] received")
        worker.send_signal(signal.SIGHUP)
        worker.wait_text("SIGHUP; a restart follows")
        worker.send_signal(signal.SIGTERM)
        worker.wait_text("will not start again")
        server.client.set("gate", 1)
        assert worker.wait_exit() == 0
        assert result.get(timeout=1) == "a"


APP = """
import os, time
from greenq import Greenq

app = Greenq("mine", broker=os.environ["TEST_BROKER"])
os.environ["LEFT_BY_THE_APP"] = os.environ.get("LEFT_BY_THE_APP", "") + "x"

@app.task(name="mine.version")
def version():
    return [{version}, os.getcwd(), os.environ["LEFT_BY_THE_APP"]]
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as name:
        yield Path(name)


def start(server: Server, folder: Path, *options: str, prefix: tuple[str, ...] = ()) -> Process:
    command = [*prefix, sys.executable, "-m", "greenq", "worker", "-A", "mine", "-l", "INFO"]
    env = _environment(server.url, {})
    return Process([*command, *options], folder / "w.log", env, folder.parent)


def test_it_runs_the_new_code_with_the_same_pid_file_folder_and_environment(
    server: Server, client: Greenq, folder: Path
) -> None:
    (folder / "mine.py").write_text(APP.replace("{version}", "1"))
    # A folder relative to that in which it was started must not be applied twice.
    worker = start(server, folder, "--workdir", folder.name, "--pidfile", "w.pid")
    try:
        wait_ready(worker, 1)
        pid_file = folder / "w.pid"
        before = pid_file.stat().st_ino
        assert client.send_task("mine.version").get(timeout=WAIT_S) == [1, str(folder), "x"]
        (folder / "mine.py").write_text(APP.replace("{version}", "22"))
        worker.send_signal(signal.SIGHUP)
        wait_ready(worker, 2)
        assert client.send_task("mine.version").get(timeout=WAIT_S) == [22, str(folder), "x"]
        # The file was never away or unlocked, so no other worker could take it.
        assert pid_file.stat().st_ino == before
        assert pid_file.read_text() == f"{worker.pid}\n"
        second = start(server, folder.parent / folder.name, "--workdir", folder.name,
            "--pidfile", "w.pid", "-n", "second@host")  # fmt: skip
        assert second.wait_exit() == 1
        assert "has locked it and is alive" in second.text
    finally:
        worker.stop()
    assert not pid_file.exists()


def test_a_broken_module_ends_the_process_with_its_error(
    server: Server, client: Greenq, folder: Path
) -> None:
    (folder / "mine.py").write_text(APP.replace("{version}", "1"))
    worker = start(server, folder, "--workdir", folder.name, "--pidfile", "w.pid")
    try:
        wait_ready(worker, 1)
        (folder / "mine.py").write_text("import does_not_exist\n")
        worker.send_signal(signal.SIGHUP)
        assert worker.wait_exit() == 1
        assert "needs 'does_not_exist', which is not installed" in worker.text
        assert not (folder / "w.pid").exists()
        assert not server.client.exists("greenq.leases")
    finally:
        worker.stop()


def test_a_hangup_is_ignored_under_nohup(server: Server, client: Greenq, folder: Path) -> None:
    (folder / "mine.py").write_text(APP.replace("{version}", "1"))
    worker = start(server, folder, "--workdir", folder.name, prefix=("nohup",))
    try:
        wait_ready(worker, 1)
        os.kill(worker.pid, signal.SIGHUP)
        assert client.send_task("mine.version").get(timeout=WAIT_S)[0] == 1
        assert "a restart" not in worker.text
    finally:
        worker.stop()


def test_hangups_in_a_row_never_end_the_process(server: Server, client: Greenq) -> None:
    with greenq_worker(server.url, app="ledger_app") as worker:
        # They fall into each moment of a few restarts.
        while worker.text.count("a restart follows") < 4:
            worker.send_signal(signal.SIGHUP)
            time.sleep(0.005)
            assert worker.alive, worker.text
        assert client.send_task("ledger.nap", ("x", 0.0)).get(timeout=WAIT_S) == "x"
