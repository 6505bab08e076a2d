"""The commands that look at workers and steer them, with real ones: greenq's and Celery's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from greenq.cli import main
from greenq.cli.remote_commands import INSPECT
from tests.servers import ROOT, Server, celery_worker, greenq_worker, valkey
from tests.support import wait_until

pytestmark = pytest.mark.smoke

Run = Callable[..., "Ended"]


class Ended(NamedTuple):
    """What a command has written, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it wrote, as JSON; it must have ended well."""
        assert self.code == 0, self
        return json.loads(self.out)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    """Two greenq workers and a Celery one."""
    with (
        valkey() as server,
        greenq_worker(server.url, "-n", "one@h"),
        greenq_worker(server.url, "-n", "two@h", "-Q", "celery,mail"),
        celery_worker(server.url, "-n", "old@h"),
    ):
        yield server


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GREENQ_APP", "GREENQ_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)


def runner(url: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs a command on the server at `url`."""

    def run(*argv: str, broker: bool = True) -> Ended:
        capsys.readouterr()
        name, *rest = argv
        code = main([name, *(("-b", url) if broker else ()), *rest])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def run(cluster: Server, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(cluster.url, capsys)


@pytest.fixture
def alone(server: Server, capsys: pytest.CaptureFixture[str]) -> Run:
    """What runs a command where there is no worker."""
    return runner(server.url, capsys)


NODES = ["old@h", "one@h", "two@h"]
OURS = ["one@h", "two@h"]


# --- who is there ---------------------------------------------------------------------------------


def test_ping_lists_all_nodes_with_their_times(run: Run) -> None:
    lines = run("ping").out.splitlines()

    assert [line.partition(":")[0] for line in lines] == NODES
    assert all(re.fullmatch(r"\w+@h: pong  \d+\.\d ms", line) for line in lines)
    assert [each["reply"] for each in run("ping", "--json").json.values()] == [{"ok": "pong"}] * 3


def test_status_has_a_line_for_each_node_celery_s_included(run: Run) -> None:
    ended = run("status")
    heading, *lines, total = ended.out.splitlines()

    assert ended.code == 0
    assert heading.split() == ["NODE", "STATE", "ACTIVE", "PROCESSED", "UPTIME"]
    assert [line.split()[:2] for line in lines] == [[node, "ok"] for node in NODES]
    assert total == "3 nodes online"
    assert run("status", "--json").json["one@h"]["ok"] == "ok"


def test_destination_is_asked_alone(run: Run) -> None:
    assert list(run("ping", "-d", "two@h,old@h", "--json").json) == ["old@h", "two@h"]


def test_node_that_is_not_there_is_named_after_the_timeout(run: Run) -> None:
    some = run("ping", "-d", "one@h,gone@h", "-t", "0.2")
    none = run("inspect", "ping", "-d", "gone@h", "-t", "0.2", "--json")

    why = "gone@h: no reply within 0.2 s: no greenq worker with this name holds a lease\n"
    assert (some.code, some.err) == (75, why)
    assert (none.code, none.out) == (69, "{}\n")
    assert "none of gone@h has replied within 0.2 s" in none.err


@pytest.mark.parametrize("argv", [["ping"], ["status"], ["inspect", "active"],
    ["control", "heartbeat"], ["control", "shutdown"]])  # fmt: skip
def test_without_workers_it_ends_at_once_with_69(alone: Run, argv: list[str]) -> None:
    before = time.monotonic()
    ended = alone(*argv, "-t", "30")

    assert ended.code == 69
    assert "no node has replied" in ended.err
    assert time.monotonic() - before < 10


# --- inspect and control --------------------------------------------------------------------------

OWN = {"status", "greenlets", "hub", "autoscale_log"}
GIVEN = {"query_task": ["id-1"], "hello": ["me@h"]}


@pytest.mark.parametrize("name", [each.name for each in INSPECT if each.name != "objgraph"])
def test_every_inspect_command_is_answered_by_all_who_know_it(run: Run, name: str) -> None:
    replies = run("inspect", name, *GIVEN.get(name, []), "--json").json

    assert list(replies) == NODES
    wrong = {
        node for node, reply in replies.items() if isinstance(reply, dict) and "error" in reply
    }
    assert wrong == ({"old@h"} if name in OWN else set())
    # The same for people.
    shown = run("inspect", name, *GIVEN.get(name, [])).out
    assert all(re.search(f"^{node}", shown, re.MULTILINE) for node in NODES)


@pytest.mark.parametrize(
    ("typed", "reply"),
    [
        ("rate_limit shared.nothing 10/m", "new rate limit set successfully"),
        ("rate_limit shared.nothing 0", None),
        ("time_limit shared.nothing 30 60", "time limits set successfully"),
        ("enable_events", "task events enabled"),
        ("disable_events", "task events disabled"),
        ("add_consumer extra", "add consumer extra"),
        ("cancel_consumer extra", "no longer consuming from extra"),
        ("pool_grow 2", "pool will grow"),
        ("pool_shrink 2", "pool will shrink"),
        ("revoke no-such-id", "tasks {'no-such-id'} flagged as revoked"),
        ("terminate SIGTERM no-such-id", "terminate: tasks unknown"),
        ("drain", "draining: 0 tasks are running"),
        ("drain false", "takes tasks again"),
    ],
)
def test_control_command_is_obeyed(run: Run, typed: str, reply: str | None) -> None:
    replies = run("control", *typed.split(), "-d", "one@h,two@h", "--json").json

    assert list(replies) == OURS
    assert all(each == {"ok": reply} or reply is None for each in replies.values()), replies


def test_celery_worker_obeys_as_well(run: Run) -> None:
    ended = run("control", "-d", "old@h", "rate_limit", "shared.nothing", "10/m")

    assert ended == (0, "old@h: new rate limit set successfully\n", "")


def test_error_of_all_is_exit_code_1(run: Run) -> None:
    ended = run("control", "rate_limit", "no.such.task", "1/s")

    assert ended.code == 1
    assert ended.out.splitlines() == [f"{node}: error: unknown task" for node in NODES]
    assert run("inspect", "--any", "no_such_command", "a=1").code == 1


def test_running_task_is_seen_and_ended(run: Run, cluster: Server) -> None:
    task_id = run("call", "shared.sleep", "--args", "[600]", "--queue", "mail").out.strip()
    wait_until(lambda: task_id in run("inspect", "active").out)

    found = run("inspect", "query_task", task_id, "--json").json["two@h"]
    assert found[task_id][0] == "active"
    assert task_id in run("inspect", "greenlets", "-d", "two@h").out

    assert run("control", "revoke", task_id, "--terminate").code == 0
    wait_until(lambda: run("result", task_id, "--json").json["state"] == "REVOKED")
    assert task_id in run("inspect", "revoked", "-d", "two@h").out


def test_scheduled_tasks_are_listed_in_part(run: Run) -> None:
    sent = [
        run("call", "shared.nothing", "--queue", "mail", "--countdown", "250").out.strip()
        for _ in range(5)
    ]

    def ids(*options: str) -> list[str]:
        found = run("inspect", "scheduled", "-d", "two@h", "--json", *options).json["two@h"]
        return [item["request"]["id"] for item in found]

    wait_until(lambda: len(ids()) == 5)
    assert ids() == sent
    assert ids("--limit", "2", "--offset", "1") == sent[1:3]
    assert run("control", "revoke", *sent).code == 0


def test_shutdown_stops_a_worker(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    run = runner(server.url, capsys)
    with greenq_worker(server.url, "-n", "last@h") as worker:
        wait_until(lambda: run("ping").code == 0)
        assert run("control", "shutdown", "-d", "last@h").code == 0
        assert worker.wait_exit() == 0


# --- tasks ----------------------------------------------------------------------------------------


def test_call_sends_and_result_shows(run: Run) -> None:
    well = run("call", "shared.add", "--args", "[2, 3]", "--json").json["id"]
    badly = run("call", "shared.fail_value", "--args", '["no", 5]').out.strip()
    wait_until(lambda: run("result", well, "--json").json["state"] == "SUCCESS")
    wait_until(lambda: run("result", badly, "--json").json["state"] == "FAILURE")

    assert run("result", well, "--json").json["result"] == 5
    assert "ValueError('no', 5)" in run("result", badly).out
    assert "Traceback" not in run("result", badly).out
    assert "Traceback (most recent call last)" in run("result", badly, "--traceback").out
    assert run("result", "never-sent", "--json").json["state"] == "PENDING"


# --- queues ---------------------------------------------------------------------------------------


def test_queues_are_counted_without_a_worker(alone: Run) -> None:
    assert alone("queues", "--json").json.keys() == {"celery"}
    for priority in ("0", "4", "9", "9"):
        alone("call", "t", "--queue", "jobs", "--priority", priority)

    found = alone("queues", "--json").json

    assert found.keys() == {"celery", "jobs"}
    assert found["jobs"]["waiting"] == 4
    assert found["jobs"]["depth"] == {"0": 1, "3": 1, "6": 0, "9": 2}
    assert found["jobs"]["consumers"] == []
    assert alone("queues", "-Q", "jobs").out.splitlines()[1].split()[:2] == ["jobs", "4"]
    assert alone("queues", "-Q", "jobs", "--json", "--rates").json["jobs"]["change_per_s"] == 0.0


def test_queues_name_their_consumers(run: Run) -> None:
    found = run("queues", "--json").json

    assert found["celery"]["consumers"] == NODES
    assert found["mail"]["consumers"] == ["two@h"]


def test_queue_is_paused_for_all_workers_and_marked(run: Run, cluster: Server) -> None:
    assert run("control", "pause", "mail", "-d", "one@h,two@h").code == 0
    assert run("queues", "-Q", "mail", "--json").json["mail"]["paused"]["by"]
    assert "paused by" in run("queues").out
    task_id = run("call", "shared.add", "--args", "[1, 1]", "--queue", "mail").out.strip()
    assert run("queues", "-Q", "mail", "--json").json["mail"]["waiting"] == 1

    assert run("control", "resume", "mail", "-d", "one@h,two@h").code == 0
    assert run("queues", "-Q", "mail", "--json").json["mail"]["paused"] is None
    wait_until(lambda: run("result", task_id, "--json").json["state"] == "SUCCESS")


def test_queue_is_paused_although_no_worker_is_there(alone: Run) -> None:
    ended = alone("control", "pause", "mail")

    assert (ended.code, ended.err) == (0, "queue mail is paused; no node has replied\n")
    assert alone("queues", "-Q", "mail", "--json").json["mail"]["paused"]
    assert alone("control", "resume", "mail").code == 0
    assert alone("queues", "-Q", "mail", "--json").json["mail"]["paused"] is None


def test_purge_deletes_what_waits_but_asks_first(
    alone: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        alone("call", "t", "--queue", "jobs")
    alone("call", "t", "--queue", "kept")

    class Keyboard:
        def __init__(self, typed: str, *, terminal: bool = True) -> None:
            self.typed = typed
            self.terminal = terminal

        def isatty(self) -> bool:
            return self.terminal

        def readline(self) -> str:
            return self.typed

    monkeypatch.setattr("sys.stdin", Keyboard("y\n", terminal=False))
    refused = alone("purge", "-Q", "jobs")
    assert refused.code == 1
    assert "this would delete for good: 3 in jobs; add --yes to do so" in refused.err

    monkeypatch.setattr("sys.stdin", Keyboard("n\n"))
    unsure = alone("purge", "-Q", "jobs")
    assert unsure.code == 1
    assert unsure.err == "delete for good: 3 in jobs? [y/N] nothing was deleted\n"
    assert server.client.llen("jobs") == 3

    monkeypatch.setattr("sys.stdin", Keyboard("yes\n"))
    assert alone("purge", "-Q", "jobs").out == "purged 3 messages (jobs 3)\n"
    assert alone("purge", "-Q", "kept,jobs", "-f", "--json").json == {"kept": 1, "jobs": 0}
    assert alone("purge", "--yes").out == "purged 0 messages (celery 0)\n"


def test_bindings_are_listed_without_those_of_the_cluster(run: Run) -> None:
    found = run("list", "bindings", "--json").json

    assert {"queue": "mail", "exchange": "mail", "routing_key": "mail"} in found
    assert {"queue": "celery", "exchange": "celery", "routing_key": "celery"} in found
    assert not [each for each in found if "pidbox" in each["exchange"]]
    assert run("list", "bindings").out.splitlines()[0].split() == [
        *("QUEUE", "EXCHANGE", "ROUTING", "KEY"),
    ]


def test_odd_members_of_binding_sets_are_left_out(alone: Run, server: Server) -> None:
    server.client.sadd("_kombu.binding.x*", "somebody else's", b"\xff\x06\x16\x06\x16q")

    assert alone("list", "bindings", "--json").json == [
        {"queue": "q", "exchange": "x*", "routing_key": "\ufffd"}
    ]


# --- the rest -------------------------------------------------------------------------------------


def test_report_tells_versions_and_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    run = runner("redis://:hushhush@127.0.0.1:1/0", capsys)

    report = run("report", "--json").json

    assert report["settings"]["broker_url"] == "redis://:********@127.0.0.1:1/0"
    assert report["software"]["redis"]
    assert "hushhush" not in run("report").out
    assert "settings" not in run("report", "--json", broker=False).json


def test_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    run = runner("redis://:hushhush@127.0.0.1:1/0", capsys)

    for argv in (["ping"], ["inspect", "active"], ["queues"], ["purge", "--yes"], ["call", "t"]):
        ended = run(*argv)
        assert ended.code == 1
        assert ended.err.startswith(f"greenq {argv[0]}: ")
        assert "127.0.0.1:1" in ended.err
        assert "hushhush" not in ended.err


def test_server_may_be_named_by_the_environment(
    run: Run, cluster: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENQ_BROKER_URL", cluster.url)

    assert list(run("ping", "--json", broker=False).json) == NODES


def greenq(*argv: str, typed: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "greenq", *argv],
        input=typed,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_shell_has_the_app_and_sends(server: Server) -> None:
    ended = greenq("shell", "-b", server.url, "--plain", typed="app.send_task('typed.here')\n")

    assert ended.returncode == 0
    assert "<AsyncResult: " in ended.stdout
    assert b"typed.here" in server.queued()[0]


def test_reader_that_has_seen_enough_is_no_error(server: Server) -> None:
    for number in range(2000):
        server.client.sadd(f"_kombu.binding.{number}", f"\x06\x16\x06\x16{'q' * 50}{number}")
    with subprocess.Popen(
        [sys.executable, "-m", "greenq", "list", "bindings", "-b", server.url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_watching_ends_with_sigint(server: Server) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "greenq", "queues", "-b", server.url, "--watch", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(2)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert "change_per_s" not in looks[0]["celery"]
    assert looks[1]["celery"]["change_per_s"] == 0.0
