"""Events on a real server: heard by programs and by `greenq events`, sent by greenq and Celery."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq
from greenq.errors import ConnectFailed
from greenq.events.receiver import Receiver
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import EXCHANGE, MULTI, EventWriter, routing_key
from greenq.protocol.keys import Keys
from greenq.protocol.mailbox import EXCHANGE as CONTROL
from greenq.protocol.mailbox import read_request
from greenq.protocol.serialize import accepted
from tests.servers import (
    APPS,
    ROOT,
    Process,
    Server,
    celery_worker,
    free_port,
    greenq_worker,
)
from tests.support import wait_until

WAIT_S = 15

# The command as `greenq` runs it, and then: what it must not have needed.
COMMAND = """
import sys
from greenq.cli import main
code = main(sys.argv[1:])
assert "gevent" not in sys.modules
sys.exit(code)
"""


@pytest.fixture
def app(server: Server) -> Iterator[Greenq]:
    client = Greenq("client", broker=server.url, set_as_current=False)
    yield client
    client.close()


class Teller:
    """Publishes events as a worker does."""

    def __init__(self, server: Server, hostname: str = "w@h") -> None:
        self._client = server.client
        self._writer = EventWriter(hostname, LamportClock(100))

    def tell(self, kind: str, **fields: Any) -> int:
        """Publish an event; return how many have heard it."""
        text = self._writer.write(self._writer.stamp(kind, fields))
        return self.publish(routing_key(kind), text)

    def tell_all(self, *kinds: str, **fields: Any) -> int:
        """Publish a batch of events of tasks."""
        batch = [self._writer.stamp(kind, fields) for kind in kinds]
        return self.publish(MULTI, self._writer.write_batch(batch))

    def publish(self, key: str, text: bytes) -> int:
        heard: int = self._client.publish(Keys().fanout(EXCHANGE, key), text)
        return heard


@pytest.fixture
def teller(server: Server) -> Teller:
    return Teller(server)


@contextmanager
def opened(receiver: Receiver, *, wakeup: bool = False) -> Iterator[Receiver]:
    receiver.open(wakeup=wakeup)
    try:
        yield receiver
    finally:
        receiver.close()


def hear(receiver: Receiver, count: int) -> list[dict[str, Any]]:
    """Wait for so many events."""
    events: list[dict[str, Any]] = []

    def enough() -> bool:
        events.extend(receiver.wait(0.1))
        return len(events) >= count

    wait_until(enough, WAIT_S)
    return events


@contextmanager
def capturing(receiver: Receiver, **options: Any) -> Iterator[threading.Thread]:
    """Capture in a thread; it must have ended when the test has."""
    thread = threading.Thread(target=receiver.capture, kwargs=options, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        receiver.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()


# --- the receiver ---------------------------------------------------------------------------------


def test_receiver_hears_single_events_and_batches(app: Greenq, teller: Teller) -> None:
    with opened(app.events.Receiver()) as receiver:
        assert teller.tell("worker-online", freq=2.0) == 1
        assert teller.tell_all("task-received", "task-started", uuid="1") == 1
        events = hear(receiver, 3)
    assert [each["type"] for each in events] == ["worker-online", "task-received", "task-started"]
    assert [each["clock"] for each in events] == [101, 102, 103]
    assert all(each["hostname"] == "w@h" and each["local_received"] > 0 for each in events)
    assert app.clock.value > 103


def test_handlers_get_their_kinds_and_the_star_the_rest(app: Greenq, teller: Teller) -> None:
    failed: list[str] = []
    others: list[str] = []
    receiver = app.events.Receiver(
        {
            "task-failed": lambda event: failed.append(event["uuid"]),
            "*": lambda event: others.append(event["type"]),
        }
    )
    with capturing(receiver, limit=3, wakeup=False) as thread:
        wait_until(lambda: teller.tell_all("task-failed", "task-started", uuid="1"), WAIT_S)
        teller.tell("worker-heartbeat")
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert (failed, others) == (["1"], ["task-started", "worker-heartbeat"])


def test_routing_key_chooses_what_is_heard(app: Greenq, teller: Teller) -> None:
    with opened(app.events.Receiver(routing_key="worker.#")) as receiver:
        assert teller.tell_all("task-received", uuid="1") == 0
        assert teller.tell("worker-heartbeat") == 1
        assert [each["type"] for each in hear(receiver, 1)] == ["worker-heartbeat"]


def test_timestamps_stay_unix_time_whatever_the_time_zones(
    app: Greenq, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenq.protocol.event.utcoffset", lambda: -2.0)
    with opened(app.events.Receiver()) as receiver:
        Teller(server).tell("worker-heartbeat")
        (event,) = hear(receiver, 1)
    assert event["utcoffset"] == -2.0
    assert event["timestamp"] == pytest.approx(event["local_received"], abs=WAIT_S)


def test_a_programs_own_event_is_heard(app: Greenq) -> None:
    with opened(app.events.Receiver(routing_key="task.#")) as receiver:
        app.events.send("task-progress", hostname="w1@host", uuid="1", done=0.5)
        (event,) = hear(receiver, 1)
    assert (event["hostname"], event["uuid"], event["done"]) == ("w1@host", "1", 0.5)


def test_task_sent_gets_the_receivers_clock(app: Greenq, teller: Teller) -> None:
    clock = LamportClock(7)
    with opened(app.events.Receiver(clock=clock)) as receiver:
        teller.tell("task-sent", uuid="1")
        (event,) = hear(receiver, 1)
    assert (event["clock"], clock.value) == (6, 8)


@pytest.mark.parametrize(
    "raw", [b"", b"junk", b"{}", b"\xff", b'{"body": "W10=", "properties": 1}']
)
def test_what_is_no_event_is_counted_and_passed_over(
    app: Greenq, teller: Teller, raw: bytes
) -> None:
    with opened(app.events.Receiver()) as receiver:
        assert teller.publish("task.multi", raw) == 1
        teller.tell("worker-heartbeat")
        assert [each["type"] for each in hear(receiver, 1)] == ["worker-heartbeat"]
        assert receiver.ignored == 1


def test_workers_are_woken_when_their_answer_will_be_heard(
    app: Greenq, server: Server, teller: Teller
) -> None:
    with server.client.pubsub(ignore_subscribe_messages=True) as mailbox:
        mailbox.subscribe(Keys().fanout(CONTROL))
        mailbox.get_message(timeout=WAIT_S)
        with opened(app.events.Receiver(), wakeup=True) as receiver:
            asked: list[bytes] = []

            def has_come() -> bool:
                message = mailbox.get_message(timeout=0.1)
                asked.extend([message["data"]] if message else [])
                return bool(asked)

            wait_until(has_come, WAIT_S)
            request = read_request(asked[0], accepted(["json"]))
            assert (request.method, request.destination, request.reply_to) == (
                "heartbeat",
                None,
                None,
            )
            assert teller.tell("worker-heartbeat") == 1
            hear(receiver, 1)


def test_silence_ends_capturing_after_the_timeout(app: Greenq, teller: Teller) -> None:
    receiver = app.events.Receiver()
    with pytest.raises(TimeoutError, match=r"no event was received for 0\.05 s"):
        receiver.capture(timeout=0.05)
    assert teller.tell("worker-heartbeat") == 0


def test_handler_may_stop_the_capturing(app: Greenq, teller: Teller) -> None:
    heard: list[str] = []
    receiver = app.events.Receiver()

    def stop(event: dict[str, Any]) -> None:
        heard.append(event["type"])
        receiver.stop()

    receiver.handlers["*"] = stop
    with capturing(receiver, wakeup=False) as thread:
        wait_until(lambda: teller.tell_all("task-received", "task-started", uuid="1"), WAIT_S)
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert heard == ["task-received"]


def test_error_of_a_handler_reaches_the_caller_and_nothing_stays_open(
    app: Greenq, teller: Teller
) -> None:
    receiver = app.events.Receiver({"*": lambda event: {}[event["type"]]})
    captured = receiver.itercapture(wakeup=False)
    timer = threading.Thread(
        target=lambda: wait_until(lambda: teller.tell("worker-heartbeat"), WAIT_S)
    )
    timer.start()
    with pytest.raises(KeyError, match="worker-heartbeat"):
        next(captured)
    timer.join()
    assert teller.tell("worker-heartbeat") == 0


def test_lost_connection_is_made_anew_and_workers_are_woken_again(
    app: Greenq, server: Server, teller: Teller, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        server.client.pubsub(ignore_subscribe_messages=True) as mailbox,
        opened(app.events.Receiver(), wakeup=True) as receiver,
    ):
        (listening,) = server.client.client_list(_type="pubsub")
        mailbox.subscribe(Keys().fanout(CONTROL))
        mailbox.get_message(timeout=WAIT_S)
        server.client.client_kill_filter(_id=listening["id"])

        def is_heard() -> bool:
            receiver.wait(0.1)
            return teller.tell("worker-heartbeat") == 1

        wait_until(is_heard, WAIT_S)
        assert hear(receiver, 1)[-1]["type"] == "worker-heartbeat"
        wait_until(lambda: mailbox.get_message(timeout=0.1), WAIT_S)
    assert "events are missed until the server can be reached again" in caplog.text


def test_server_that_cannot_be_reached_is_an_error_at_the_beginning() -> None:
    app = Greenq("client", broker=f"redis://127.0.0.1:{free_port()}", set_as_current=False)
    with pytest.raises(ConnectFailed, match="cannot reach"):
        app.events.Receiver().capture()
    app.close()


# --- with workers ---------------------------------------------------------------------------------


def watched(app: Greenq, send: Callable[[], str]) -> Any:
    """Return what a state says of a task and its worker when the task has ended."""
    state = app.events.State()
    receiver = app.events.Receiver({"*": state.event})
    sent: list[str] = []
    for _ in receiver.itercapture(timeout=WAIT_S):
        if not sent and any(state.alive_workers()):
            # The worker has answered the wake-up.
            sent.append(send())
        if sent and sent[0] in state.tasks and state.tasks[sent[0]].ready:
            break
    return state.tasks[sent[0]]


def test_life_of_a_greenq_task_is_heard(app: Greenq, server: Server) -> None:
    with greenq_worker(server.url, "-E", "-n", "w1@h"):
        task = watched(app, lambda: app.send_task("shared.add", (2, 3)).id)
    assert (task.state, task.name, task.result, task.args) == (
        "SUCCESS",
        "shared.add",
        "5",
        "(2, 3)",
    )
    assert task.received <= task.started <= task.succeeded
    assert (task.worker.hostname, task.worker.sw_ident) == ("w1@h", "greenq")


@pytest.mark.interop
def test_life_of_a_celery_task_is_heard(app: Greenq, server: Server) -> None:
    with celery_worker(server.url, "-E", "-n", "w1@h"):
        task = watched(app, lambda: app.send_task("shared.add", (2, 3)).id)
    assert (task.state, task.name, task.result) == ("SUCCESS", "shared.add", "5")
    assert (task.worker.hostname, task.worker.sw_ident) == ("w1@h", "py-celery")


@pytest.mark.interop
def test_celerys_own_receiver_hears_what_is_written_here(
    server: Server, teller: Teller, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "celery", "-b", server.url, "events", "--dump"]
    dump = Process(command, tmp_path / "dump.log", {**os.environ, "PYTHONUNBUFFERED": "1"}, APPS)
    try:
        wait_until(lambda: teller.tell("worker-heartbeat", freq=2.0, active=1), 30)
        received = {"name": "proj.add", "args": "(1,)", "kwargs": "{}"}
        teller.tell_all("task-received", "task-succeeded", uuid="id-1", result="é", **received)
        dump.wait_text("task succeeded: proj.add(id-1) args=(1,) kwargs={}")
        wait_until(lambda: "heartbeat: active=1, clock=" in dump.text, WAIT_S)
        assert "result=é" in dump.text
    finally:
        dump.stop()


# --- greenq events --------------------------------------------------------------------------------


@contextmanager
def greenq_events(server: Server, *options: str, output: int) -> Iterator[subprocess.Popen[str]]:
    """Run `greenq events`; it must have ended when the test has."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "events", "-b", server.url, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "140"},
        cwd=APPS,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_listening(server: Server) -> None:
    wait_until(lambda: server.client.pubsub_numpat() == 1, WAIT_S)


def test_events_are_written_as_lines(server: Server, teller: Teller) -> None:
    with greenq_events(server, "--limit", "2", output=subprocess.PIPE) as process:
        wait_listening(server)
        fields = {"name": "proj.add", "args": "(1,)", "kwargs": "{}"}
        teller.tell_all("task-received", "task-started", "task-succeeded", uuid="id-1", **fields)
        text, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (0, "")
    received, started = text.splitlines()
    assert received.startswith("w@h [20")
    assert "task received: proj.add(id-1) args=(1,) kwargs={}, clock=101" in received
    assert "task started: proj.add(id-1) args=(1,) kwargs={}, " in started


def test_events_are_written_as_json_at_once(server: Server, teller: Teller) -> None:
    with greenq_events(server, "--json", output=subprocess.PIPE) as process:
        wait_listening(server)
        teller.tell("task-progress", uuid="id-1", done=3)
        assert process.stdout is not None
        event = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_S)
    assert (event["type"], event["done"], event["hostname"]) == ("task-progress", 3, "w@h")
    assert (process.returncode, errors) == (0, "")


def test_events_end_after_the_timeout(server: Server) -> None:
    with greenq_events(server, "--dump", "-t", "0.2", output=subprocess.PIPE) as process:
        text, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, text, errors) == (0, "", "")


def test_server_that_is_away_is_said_in_a_line(server: Server) -> None:
    away = f"redis://127.0.0.1:{free_port()}/0"
    with greenq_events(server, "-b", away, output=subprocess.PIPE) as process:
        text, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, text) == (1, "")
    assert errors.startswith("greenq events: cannot reach")


def test_terminal_shows_a_live_table_until_interrupted(server: Server, teller: Teller) -> None:
    ours, theirs = pty.openpty()
    seen = bytearray()

    def read() -> None:
        try:
            while piece := os.read(ours, 4096):
                seen.extend(piece)
        except OSError:
            # The other end is closed.
            return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with greenq_events(server, output=theirs) as process:
        os.close(theirs)
        wait_listening(server)
        teller.tell("worker-heartbeat", freq=60.0, active=1, processed=4321)
        teller.tell_all("task-received", "task-succeeded", uuid="id-1", name="proj.add")
        wait_until(lambda: b"SUCCESS" in seen and b"4,321" in seen, WAIT_S)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_S)
    reader.join(WAIT_S)
    os.close(ours)
    assert (process.returncode, errors) == (0, "")
    assert b"1 of 1 workers online, 3 events, 1 tasks" in seen
