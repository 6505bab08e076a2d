"""What others write cannot look like a record of the log, nor act on a terminal that shows it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from greenq import Greenq
from greenq.cli import main
from greenq.protocol.clock import LamportClock
from greenq.protocol.event import EXCHANGE, EventWriter
from greenq.protocol.keys import Keys
from greenq.protocol.mailbox import ControlRequest, write_request
from tests.servers import Process, Server, greenq_worker
from tests.support import wait_until

# A title, a cleared screen, C1's CSI, writing turned round, and lines of its own.
FORGED = "[2026-01-01 00:00:00,000: CRITICAL/MainProcess] forged"
HOSTILE = f"\x1b]0;title\x07\x1b[2J\x9b2J\u202e\r\n{FORGED}\u2028{FORGED}\ud83d"

RECORD = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: [A-Z]+/MainProcess\] ")


def assert_harmless(text: str) -> None:
    """Nothing acts on a terminal, and no line looks like a record but is none."""
    acting = {char for char in text if not char.isprintable() and char not in "\n\t"}
    assert acting == set()
    assert not any(line.startswith(FORGED) for line in text.split("\n"))


class Sender:
    """Pushes messages with headers of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.app = Greenq("hostile", broker=server.url, set_as_current=False)

    def push(self, name: str, /, *args: Any, body: bytes | None = None,
        outer: Any = None, **headers: Any) -> None:  # fmt: skip
        prepared = self.app.producer.prepare(name, args, {}, {})
        message = json.loads(prepared["text"])
        message["headers"] |= headers
        message |= outer or {}
        if body is not None:
            message["body"] = base64.b64encode(body).decode()
        self.server.client.lpush("celery", json.dumps(message))

    def publish(self, request: ControlRequest) -> None:
        self.server.client.publish("/0.celery.pidbox", write_request(request))


@pytest.fixture
def sender(server: Server) -> Iterator[Sender]:
    sender = Sender(server)
    yield sender
    sender.app.close()


def send_all(sender: Sender) -> None:
    """Send hostile text in each field that reaches the log."""
    safe = HOSTILE.replace("\ud83d", "")
    sender.push("shared.add", 1, 2, shadow=HOSTILE)
    sender.push("shared.add", 1, 2, id=safe)
    sender.push("shared.add", 1, 2, expires=HOSTILE)
    sender.push("shared.add", 1, 2, expires="2020-01-01T00:00:00Z", shadow=HOSTILE)
    sender.push("shared.add", 1, 2, eta=HOSTILE)
    sender.push("shared.add", 1, 2, origin=HOSTILE, argsrepr=HOSTILE, kwargsrepr=HOSTILE)
    sender.push("shared.add", 1, 2, task=safe, id=safe)
    sender.push("shared.add", 1, 2, compression=HOSTILE)
    sender.push("shared.add", 1, 2, outer={"content-type": HOSTILE})
    sender.push("shared.add", 1, 2, outer={"content-encoding": HOSTILE})
    sender.push("shared.add", 1, 2, body=HOSTILE.encode(errors="replace"))
    sender.push("shared.echo", safe)
    sender.push("shared.fail_value", safe)
    sender.push("shared.add", safe, 2)
    sender.server.client.lpush("celery", HOSTILE.encode(errors="replace"))
    sender.publish(ControlRequest(method=safe, arguments={safe: safe}))
    sender.publish(ControlRequest(method="ping", pattern=safe, matcher="pcre"))
    sender.publish(ControlRequest(method="rate_limit", arguments={"task_name": safe}))
    sender.publish(ControlRequest(method="election", arguments={"id": safe, "topic": safe}))
    sender.server.client.publish("/0.celery.pidbox", HOSTILE.encode(errors="replace"))
    writer = EventWriter(safe, LamportClock())
    for kind in ("worker-online", "worker-offline"):
        channel = Keys().fanout(EXCHANGE, kind.replace("-", "."))
        sender.server.client.publish(channel, writer.write(writer.stamp(kind, {})))


def test_the_log_is_harmless_whatever_others_write(sender: Sender) -> None:
    with greenq_worker(sender.server.url, "-E", loglevel="DEBUG") as worker:
        worker.wait_text(" is ready")
        wait_until(lambda: sender.app.control.inspect().ping())
        send_all(sender)
        sender.app.send_task("shared.add", (1, 2)).get(timeout=15)
        wait_until(lambda: not sender.server.client.exists("celery", "unacked"))
        wait_until(lambda: "worker_remote_control_pcre" in worker.text)
        wait_until(lambda: "left" in worker.text)
        assert sender.app.control.inspect().ping()
        text = worker.text
    assert text.count("forged") > 10
    assert_harmless(text)
    # Each line is a record, or indented below one.
    for line in text.partition("] consumer: ")[2].splitlines()[1:]:
        assert RECORD.match(line) or line.startswith("    ") or not line, line


@pytest.fixture(scope="module")
def hostile_worker(shared_server: Server) -> Iterator[Process]:
    """A worker with what it holds and what lies on its server, all of it hostile."""
    shared_server.flush()
    sender = Sender(shared_server)
    safe = HOSTILE.replace("\ud83d", "")
    with greenq_worker(shared_server.url, "-n", f"w{safe}@h", "-Q", f"celery,q{safe}") as worker:
        worker.wait_text(" is ready")
        send_all(sender)
        sender.push("shared.sleep", 60, shadow=HOSTILE, argsrepr=HOSTILE, id=f"runs {safe}")
        sender.push(
            "shared.add", 1, 2, eta="2040-01-01T00:00:00Z", shadow=HOSTILE, id=f"eta {safe}"
        )
        error = {"exc_type": safe, "exc_message": [safe], "exc_module": safe}
        failed = {"status": "FAILURE", "result": error, "traceback": HOSTILE, "task_id": "failed"}
        shared_server.client.set("celery-task-meta-failed", json.dumps(failed))
        weird = {"status": safe, "result": {safe: [safe]}, "date_done": safe, "task_id": "weird"}
        shared_server.client.set("celery-task-meta-weird", json.dumps(weird))
        shared_server.client.hset("greenq.paused", safe, json.dumps({"by": safe, "at": 1}))
        sender.app.control.revoke(safe)
        wait_until(lambda: sender.app.control.inspect().active())
        yield worker
        worker.kill()
    sender.app.close()


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("ping",),
        *(("inspect", what) for what in ("active", "reserved", "scheduled", "stats", "greenlets",
            "revoked", "registered", "active_queues", "hub", "conf", "report")),
        ("inspect", "query_task", HOSTILE[:-1]),
        ("control", "pause", HOSTILE[:-1]),
        ("control", "resume", HOSTILE[:-1]),
        ("control", "rate_limit", HOSTILE[:-1], "1/s"),
        ("control", "--any", HOSTILE[:-1]),
        ("inspect", HOSTILE[:-1]),
        (HOSTILE[:-1],),
        ("queues",),
        ("list", "bindings"),
        ("dead", "list"),
        ("dead", "show"),
        ("result", "failed", "--traceback"),
        ("result", "weird"),
        ("result", HOSTILE[:-1]),
        ("report",),
        ("purge", "-Q", HOSTILE[:-1]),
        ("call", "shared.add", "-a", HOSTILE[:-1]),
        ("ping", "-d", HOSTILE[:-1]),
    ],
    ids=lambda words: ascii(" ".join(words))[:40],
)  # fmt: skip
def test_no_command_writes_what_acts_on_a_terminal(
    words: tuple[str, ...],
    hostile_worker: Process,
    shared_server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    takes_broker = words[0] in {"status", "ping", "inspect", "control", "queues", "list", "dead",
        "result", "report", "purge", "call"}  # fmt: skip
    with suppress(SystemExit):
        main([*words, *(("-b", shared_server.url) if takes_broker else ())])

    written = "".join(capsys.readouterr())
    assert written
    assert "Traceback" not in written
    assert_harmless(written)
