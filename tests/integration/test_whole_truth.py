"""Commands name who did not answer, who is gone, and what nobody takes; with exit codes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from io import StringIO

import pytest

from greenq import Greenq
from greenq.cli import main
from greenq.protocol.keys import Keys
from greenq.transport.client import Client
from greenq.transport.members import call_roll
from tests.servers import Process, Server, celery_worker, free_port, greenq_worker
from tests.support import FairTime, wait_until

WAIT_S = 15

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def run(server: Server, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> tuple[int, str, str]:
        try:
            code = main([*argv, "-b", server.url])
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def block(client: Greenq, worker: Process, queue: str, seconds: float) -> str:
    task_id = client.send_task("stuck_app.block", (seconds,), queue=queue).id
    worker.wait_text("the hub has been blocked", WAIT_S)
    return f"stuck_app.block[{task_id}]"


def test_blocked_worker_is_named_where_it_cannot_answer_and_answers_where_it_can(
    server: Server, client: Greenq, run: Run
) -> None:
    with (
        greenq_worker(server.url, "-n", "a@h", app="stuck_app"),
        greenq_worker(server.url, "-n", "b@h", "-Q", "own,other", app="stuck_app") as blocked,
    ):
        wait_until(lambda: len(client.control.ping(timeout=WAIT_S, limit=2)) == 2, WAIT_S)
        parked = client.send_task("stuck_app.add", (1, 2), queue="other", countdown=60)
        blocked.wait_text(f"[{parked.id}] received", WAIT_S)
        task = block(client, blocked, "own", 8)

        # What needs no hub is answered, and quickly.
        clock = FairTime()
        code, out, err = run("queues", "--json")
        assert clock.passed_s() < 0.9
        assert (code, err) == (0, "")
        queues = json.loads(out)
        assert queues["own"]["consumers"] == ["b@h"]
        assert queues["celery"]["consumers"] == ["a@h"]
        # And what waits in a worker is counted.
        assert queues["other"]["held"] == 1
        assert queues["own"]["held"] == 0
        for command in ("active", "stats", "greenlets", "reserved", "registered", "conf"):
            code, out, err = run("inspect", command, "--json")
            assert (command, code, err) == (command, 0, "")
            assert json.loads(out).keys() == {"a@h", "b@h"}

        # What needs it is not, and that is said with the reason and an exit code.
        clock = FairTime()
        code, out, err = run("control", "pool_grow", "3")
        # It would not answer any sooner: nobody waits for that.
        assert clock.passed_s() < 0.9
        assert code == 75
        assert "a@h: pool will grow" in out
        assert err.startswith("b@h: no reply: blocked ")
        assert task in err
        blocked.send_signal(signal.SIGQUIT)


def test_stopped_and_dead_workers_are_in_status(server: Server, client: Greenq, run: Run) -> None:
    with (
        greenq_worker(server.url, "-n", "a@h", "-Q", "other", app="stuck_app"),
        greenq_worker(server.url, "-n", "b@h", app="stuck_app") as second,
    ):
        wait_until(lambda: len(client.control.ping(timeout=WAIT_S, limit=2)) == 2, WAIT_S)
        assert run("status", "--expect", "2")[0] == 0
        results = [client.send_task("stuck_app.wait") for _ in range(4)]
        for result in results:
            second.wait_text(f"[{result.id}] received", WAIT_S)

        second.send_signal(signal.SIGSTOP)
        code, out, _err = run("status", "-t", "0.5")
        assert code == 75
        (line,) = (line for line in out.splitlines() if line.startswith("b@h"))
        assert "silent" in line
        assert "it holds its lease" in line
        assert "1 node online, 1 without a reply" in out

        second.kill()
        wait_until(lambda: len(server.queued_ids()) == 4, WAIT_S)
        wait_until(lambda: "gone" in run("status")[1], WAIT_S)
        code, out, _err = run("status")
        (line,) = (line for line in out.splitlines() if line.startswith("b@h"))
        assert "4 messages requeued" in line
        assert code == 0
        assert run("status", "--expect", "2")[0] == 75
        assert json.loads(run("status", "--json")[1])["b@h"]["given_back"] == 4
        assert 0 < server.client.ttl("greenq.gone") <= 3600

        # Once it is back, nothing is said any more.
        with greenq_worker(server.url, "-n", "b@h", "-Q", "third", app="stuck_app"):
            wait_until(lambda: len(client.control.ping(timeout=1)) == 2, WAIT_S)
            assert "gone" not in run("status")[1]


def test_shutdown_asks_first_and_says_who_goes(
    server: Server, client: Greenq, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with greenq_worker(server.url, "-n", "a@h", app="stuck_app") as worker:
        wait_until(lambda: client.control.ping(timeout=1), WAIT_S)
        monkeypatch.setattr("sys.stdin", StringIO(""))
        code, out, err = run("control", "shutdown")
        assert code == 1
        assert "a@h; add --yes to do so" in err
        assert worker.alive

        code, out, err = run("control", "shutdown", "--yes")
        assert (code, out, err) == (0, "shutdown: a@h\n", "")
        assert worker.wait_exit(WAIT_S) == 0
    assert run("control", "shutdown", "--yes")[0] == 69


def test_queue_that_nobody_takes_from_is_marked(server: Server, client: Greenq, run: Run) -> None:
    client.send_task("stuck_app.add", (1, 2), queue="maill")
    with greenq_worker(server.url, "-n", "a@h", "-Q", "mail", app="stuck_app"):
        wait_until(lambda: client.control.ping(timeout=1), WAIT_S)
        lines = run("queues")[1].splitlines()
        marked = {line.split()[0] for line in lines if "no worker takes from it" in line}
        assert "maill" in marked
        assert "mail" not in marked
        code, _out, err = run("control", "pause", "maill")
        assert code == 0
        assert "no worker takes from queue maill; did you mean mail?" in err
        assert run("control", "resume", "maill")[0] == 0
        assert "no worker takes from" not in run("control", "pause", "mail")[2]


@pytest.mark.interop
def test_celery_s_workers_go_on_when_a_queue_is_paused_and_that_is_said(
    server: Server, client: Greenq, run: Run
) -> None:
    with (
        greenq_worker(server.url, "-n", "a@h", app="stuck_app"),
        celery_worker(server.url, "-n", "c@h"),
    ):
        wait_until(lambda: len(client.control.ping(timeout=1)) == 2, WAIT_S)
        _code, out, _err = run("control", "pause", "celery")
        assert "c@h: a Celery worker: it keeps taking from celery" in out
        _code, out, _err = run("control", "resume", "celery")
        assert "c@h: a Celery worker: it takes from celery unless" in out
        # A shutdown says that they go, too.
        code, out, _err = run("control", "shutdown", "--yes")
        assert (code, out) == (0, "shutdown: a@h, c@h\n")


def test_a_policy_that_evicts_is_warned_of_and_the_server_is_in_the_report(
    server: Server, client: Greenq, run: Run
) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with greenq_worker(server.url, "-n", "a@h", app="stuck_app") as worker:
            worker.wait_text("WARNING/MainProcess] the server's maxmemory-policy is allkeys-lru")
            wait_until(lambda: client.control.ping(timeout=1), WAIT_S)
            assert "maxmemory-policy is allkeys-lru" in run("status")[2]
            told = json.loads(run("report", "--json")[1])
            version = server.client.info("server")
            number = version.get("valkey_version") or version["redis_version"]
            assert number in told["server"]["version"]
            assert "policy allkeys-lru" in told["server"]["memory"]
            assert "maxmemory-policy" in told["server"]["warnings"][0]
            assert told["workers"] == {"a@h": "holds its lease"}
            assert {"persistence", "clock", "clients"} <= told["server"].keys()
    finally:
        server.client.config_set("maxmemory-policy", "noeviction")
    assert run("status")[2].count("maxmemory") == 0


def test_two_workers_of_one_name_are_in_the_log(server: Server) -> None:
    with (
        greenq_worker(server.url, "-n", "a@h", app="stuck_app") as first,
        greenq_worker(server.url, "-n", "a@h", app="stuck_app") as second,
    ):
        second.wait_text("another worker is named a@h, or was", WAIT_S)
        assert "another worker is named" not in first.text


def test_server_without_tls_is_recognized(server: Server, client: Greenq) -> None:
    url = server.url.replace("redis://", "rediss://")
    assert Client(url).is_plain_not_tls(TimeoutError())
    assert not Client(server.url).is_plain_not_tls(TimeoutError())
    assert not Client("rediss://127.0.0.1:1").is_plain_not_tls(TimeoutError())


# --- who takes from a queue -----------------------------------------------------------------------


def taken(server: Server) -> dict[str, list[str]]:
    client = Client(server.url)
    try:
        return call_roll(client, Keys()).queues
    finally:
        client.close()


def test_a_mute_worker_s_queues_are_known_by_its_lease(
    server: Server, client: Greenq, run: Run
) -> None:
    with (
        greenq_worker(server.url, "-n", "a@h", app="stuck_app"),
        greenq_worker(server.url, "-n", "b@h", "-Q", "own,other", app="stuck_app") as mute,
        greenq_worker(server.url, "-n", "c@h", "-Q", "deaf", "--without-control", app="stuck_app"),
    ):
        wait_until(lambda: taken(server).keys() == {"a@h", "b@h", "c@h"}, WAIT_S)
        mute.send_signal(signal.SIGSTOP)
        try:
            code, out, err = run("queues", "-t", "0.2", "--json")
        finally:
            mute.send_signal(signal.SIGCONT)
    # What waits in it is not known, and that is said.
    assert code == 75
    assert "b@h: no reply within 0.2 s, but it holds its lease" in err
    queues = json.loads(out)
    assert {name: each["consumers"] for name, each in queues.items()} == {
        "celery": ["a@h"],
        "deaf": ["c@h"],
        "other": ["b@h"],
        "own": ["b@h"],
    }
    assert not any(each["untaken"] for each in queues.values())


def test_server_knows_of_each_change_of_a_worker_s_queues(server: Server, client: Greenq) -> None:
    def told() -> list[str] | None:
        return taken(server).get("a@h")

    with greenq_worker(server.url, "-n", "a@h", "-Q", "q1", app="stuck_app") as worker:
        wait_until(lambda: told() == ["q1"], WAIT_S)
        client.control.add_consumer("q2", reply=True)
        wait_until(lambda: told() == ["q1", "q2"], WAIT_S)
        client.control.cancel_consumer("q1", reply=True)
        wait_until(lambda: told() == ["q2"], WAIT_S)
        # A paused one is still its own.
        client.transport.broker.pause("q2", "me")
        worker.wait_text("queue q2 is paused", WAIT_S)
        assert told() == ["q2"]
        # A server that has lost its data is told again.
        server.client.flushall()
        wait_until(lambda: told() == ["q2"], WAIT_S)

        # Who stops takes from none, while its tasks still run.
        task = client.send_task("stuck_app.wait", queue="q2")
        worker.wait_text(f"[{task.id}] received", WAIT_S)
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda: told() == [], WAIT_S)
        worker.send_signal(signal.SIGTERM)


def test_sender_is_warned_of_a_queue_that_no_worker_takes_from(
    server: Server, client: Greenq, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    def send(queue: str) -> list[str]:
        caplog.clear()
        app = Greenq("sender", broker=server.url, set_as_current=False)
        for _ in range(3):
            app.send_task("stuck_app.add", (1, 2), queue=queue)
        app.close()
        return [each for each in caplog.messages if "no worker takes from" in each]

    # Before the first worker starts, nobody wants to hear that.
    assert send("maill") == []
    with greenq_worker(server.url, "-n", "a@h", "-Q", "mail", app="stuck_app"):
        wait_until(lambda: taken(server) == {"a@h": ["mail"]}, WAIT_S)
        assert send("mail") == []
        assert send("maill") == [
            "no worker takes from queue maill: messages sent to it wait (1 worker is running); did "
            "you mean mail?"
        ]
        code, out, err = run("status")
        assert (code, out.splitlines()[-1]) == (0, "1 node online")
        assert err == "warning: no worker takes from queue maill: 6 waiting\n"
        assert json.loads(run("queues", "--json")[1])["maill"]["untaken"]

        # What one of Celery's takes from that does not answer is not known.
        sep = "\x06\x16"
        server.client.sadd("_kombu.binding.celery.pidbox", f"{sep}{sep}c@h.celery.pidbox")
        assert send("maill") == []
        assert run("status")[2] == ""
        assert not json.loads(run("queues", "--json")[1])["maill"]["untaken"]


def test_send_goes_through_where_it_may_not_be_asked_who_takes_from_a_queue(
    server: Server, client: Greenq
) -> None:
    server.client.acl_setuser(
        "sender", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-eval"]
    )
    try:
        app = Greenq(
            "sender", broker=server.url.replace("//", "//sender:pw@"), set_as_current=False
        )
        app.send_task("stuck_app.add", (1, 2), queue="maill")
        app.close()
    finally:
        server.client.acl_deluser("sender")
    assert len(server.queued_ids("maill")) == 1


@pytest.mark.interop
def test_what_celery_s_workers_take_from_is_asked(
    server: Server, client: Greenq, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        greenq_worker(server.url, "-n", "a@h", "-Q", "mail", app="stuck_app"),
        celery_worker(server.url, "-n", "c@h"),
    ):
        wait_until(lambda: taken(server) == {"a@h": ["mail"]}, WAIT_S)
        wait_until(lambda: len(client.control.ping(timeout=1)) == 2, WAIT_S)
        for queue in ("celery", "maill"):
            client.send_task("stuck_app.add", (1, 2), queue=queue)
        assert not [each for each in caplog.messages if "no worker takes from" in each]
        queues = json.loads(run("queues", "--json")[1])
        assert queues["celery"]["consumers"] == ["c@h"]
        assert {name for name, each in queues.items() if each["untaken"]} == {"maill"}
        assert run("status")[2] == "warning: no worker takes from queue maill: 1 waiting\n"


# --- what goes wrong is said once -----------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *("status", "ping", "queues", "inspect active", "control pool_grow", "purge --yes"),
        *("list bindings", "dead list", "top --json", "control pause mail", "call proj.add"),
    ],
)
def test_server_that_cannot_be_reached_is_named_once(
    command: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    assert main([*command.split(), "-b", url]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("cannot reach") == 1
    assert told.err.count("\n") == 1
    assert ".;" not in told.err
    assert caplog.text == ""


def test_server_that_speaks_without_tls_is_said_to(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "-b", server.url.replace("redis://", "rediss://")]) == 1
    assert "answers, but not over TLS; did you mean redis://?" in capsys.readouterr().err
