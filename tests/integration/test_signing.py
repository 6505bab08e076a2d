"""With a signing key, nothing acts that was not signed with one: on a real server, both ways."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq
from greenq.config.queues import Binding, Exchange
from greenq.errors import ConfigError, ResultTimeout, SignatureError
from greenq.protocol.envelope import mark_redelivered
from greenq.protocol.event import EventWriter
from greenq.protocol.signer import Signer
from greenq.sending.routing import Broadcast
from tests.servers import APPS, ROOT, Process, Server, greenq_worker, valkey
from tests.support import wait_until

KEY, OLD, STRANGE = ("key-" * 8, "old-" * 8, "strange-" * 4)
WAIT_S = 20

UNSIGNED, UNKNOWN = "unsigned", "signed with an unknown key"
WRONG = "signature does not match"


def client(server: Server, key: str | None = KEY, **settings: Any) -> Greenq:
    return Greenq(
        "client",
        broker=server.url,
        set_as_current=False,
        security_signing_key=key,
        **settings,
    )


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Server, Process]]:
    """A server with a worker that wants signatures, for tests that leave it as it is."""
    settings = {"security_signing_key": KEY, "task_eta_horizon": 0.2}
    with (
        valkey() as server,
        greenq_worker(server.url, "-Q", "celery,other", settings=settings) as worker,
    ):
        yield server, worker


@pytest.fixture
def server(running: tuple[Server, Process]) -> Server:
    return running[0]


@pytest.fixture
def app(server: Server) -> Iterator[Greenq]:
    opened = client(server)
    yield opened
    opened.close()


@pytest.fixture
def stranger(server: Server) -> Iterator[Greenq]:
    opened = client(server, None)
    yield opened
    opened.close()


def letter_of(server: Server, task_id: str, queue: str = "celery") -> str:
    """Wait for the dead letter of a task and return its reason."""

    def found() -> list[str]:
        return [each.reason for each in server.dead_letters(queue) if each.task_id == task_id]

    wait_until(found, WAIT_S)
    (reason,) = found()
    return reason


def message(app: Greenq, task_id: str, *, queue: str = "celery", key: str = KEY) -> bytes:
    """Write a signed message that adds 1 and 2."""
    options = {"task_id": task_id, "queue": queue}
    text = app.producer.prepare("shared.add", (1, 2), {}, options)["text"]
    return Signer(key.encode()).seal("message", queue, text)


def refused(app: Greenq) -> dict[str, int]:
    ((_node, stats),) = app.control.inspect(timeout=5, limit=1).stats().items()
    counted: dict[str, int] = stats["refused_signatures"]
    return counted


# --- what is signed works -------------------------------------------------------------------------


def test_signed_tasks_run_and_their_results_are_read(app: Greenq, server: Server) -> None:
    result = app.send_task("shared.add", (1, 2))
    assert result.get(timeout=WAIT_S) == 3
    meta = json.loads(server.client.get(f"celery-task-meta-{result.id}"))
    assert list(meta)[-1] == "greenq_sig"
    many = app.send_task_many("shared.add", [((i, 1), {}) for i in range(300)])
    assert [each.get(timeout=WAIT_S) for each in many] == list(range(1, 301))


def test_failures_progress_retries_and_children_are_signed(app: Greenq, server: Server) -> None:
    failed = app.send_task("shared.fail_value", ("text", 1))
    with pytest.raises(ValueError, match="text"):
        failed.get(timeout=WAIT_S)
    assert app.send_task("shared.progress", (2,)).get(timeout=WAIT_S)
    assert app.send_task("shared.retry_until", (2,)).get(timeout=WAIT_S) == 2
    child = app.send_task("shared.send_child", (1,)).get(timeout=WAIT_S)
    assert app.AsyncResult(child).get(timeout=WAIT_S)["id"] == child
    assert not server.dead_letters()


def test_what_waits_for_its_eta_stays_valid(app: Greenq, server: Server) -> None:
    parked = app.send_task("shared.add", (1, 2), countdown=1.5)
    wait_until(lambda: server.client.zcard("greenq.eta.celery"), WAIT_S)
    assert parked.get(timeout=WAIT_S) == 3


@pytest.mark.parametrize("serializer", ["msgpack", "pickle", "yaml"])
def test_bodies_and_results_of_any_format_are_signed(server: Server, serializer: str) -> None:
    settings = {
        "accept_content": ["json", serializer],
        "result_serializer": serializer,
        "result_compression": "gzip",
    }
    with greenq_worker(
        server.url, "-Q", "formats", settings={"security_signing_key": KEY, **settings}
    ):
        app = client(server, **settings)
        sent = {"serializer": serializer, "compression": "gzip", "queue": "formats"}
        result = app.send_task("shared.add", (1, 2), **sent)
        assert result.get(timeout=WAIT_S) == 3
        key = f"celery-task-meta-{result.id}"
        server.client.set(key, server.client.get(key)[:-1] + b"?")
        with pytest.raises(SignatureError, match=WRONG):
            app.AsyncResult(result.id).get(timeout=WAIT_S)
        app.close()


# --- messages -------------------------------------------------------------------------------------


def test_an_unsigned_message_is_a_dead_letter_without_a_result(
    app: Greenq, stranger: Greenq, server: Server
) -> None:
    before = refused(app).get(f"message: {UNSIGNED}", 0)
    sent = stranger.send_task("shared.add", (1, 2))
    assert letter_of(server, sent.id) == UNSIGNED
    # Its id may be that of another task, whose caller must not get an error.
    assert not server.client.exists(f"celery-task-meta-{sent.id}")
    assert refused(app)[f"message: {UNSIGNED}"] == before + 1


def test_a_message_signed_with_another_key_is_a_dead_letter(app: Greenq, server: Server) -> None:
    server.client.lpush("celery", message(app, "by-a-stranger", key=STRANGE))
    assert letter_of(server, "by-a-stranger") == UNKNOWN


@pytest.mark.parametrize(
    ("name", "was", "becomes"),
    [
        ("task", b'"shared.add"', b'"shared.echo"'),
        ("eta", b'"eta": null', b'"eta": "2020-01-01T00:00:00"'),
        ("retries", b'"retries": 0', b'"retries": 1'),
        ("priority", b'"priority": 0', b'"priority": 3'),
        ("reply_to", b'"reply_to": "', b'"reply_to": "x'),
        ("deaths", b'"priority": 0', b'"deliveries": 9, "priority": 0'),
    ],
)
def test_a_changed_message_is_a_dead_letter(
    app: Greenq, server: Server, name: str, was: bytes, becomes: bytes
) -> None:
    genuine = message(app, f"changed-{name}")
    assert genuine.count(was) == 1
    server.client.lpush("celery", genuine.replace(was, becomes))
    assert letter_of(server, f"changed-{name}") == WRONG


def test_a_message_moved_to_another_queue_is_a_dead_letter(app: Greenq, server: Server) -> None:
    server.client.lpush("other", message(app, "moved"))
    assert letter_of(server, "moved", "other") == WRONG
    assert app.send_task("shared.add", (1, 2), queue="other").get(timeout=WAIT_S) == 3


def test_an_exchange_leads_to_a_message_signed_for_each_queue(app: Greenq, server: Server) -> None:
    for queue in ("celery", "other"):
        app.transport.broker.bind(queue, Binding(Exchange("both"), "key"))
    result = app.send_task("shared.add", (1, 2), exchange="both", routing_key="key")
    assert result.get(timeout=WAIT_S) == 3
    wait_until(lambda: not server.client.exists("celery", "other", "unacked"), WAIT_S)
    assert not [each for each in server.dead_letters() if each.task_id == result.id]
    assert not [each for each in server.dead_letters("other") if each.task_id == result.id]


def test_a_result_is_no_message(app: Greenq, server: Server) -> None:
    text = app.producer.prepare("shared.add", (1, 2), {}, {"task_id": "a-result"})["text"]
    server.client.lpush("celery", Signer(KEY.encode()).seal("result", "celery", text))
    assert letter_of(server, "a-result") == WRONG


def test_a_replay_of_dead_letters_makes_nothing_valid(
    app: Greenq, stranger: Greenq, server: Server
) -> None:
    sent = stranger.send_task("shared.add", (1, 2)).id
    genuine = app.send_task("shared.unheard_of").id
    letter_of(server, sent)
    letter_of(server, genuine)
    replayed = subprocess.run(
        [sys.executable, "-m", "greenq", "dead", "replay", "-A", "greenq_app"],
        env={
            "PYTHONPATH": f"{ROOT}:{APPS}",
            "TEST_BROKER": server.url,
            "TEST_SETTINGS": json.dumps({"security_signing_key": KEY}),
        },
        cwd=APPS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert replayed.returncode == 0, replayed.stderr
    assert letter_of(server, sent) == UNSIGNED
    # Valid as before: it fails for the reason for which it had failed.
    assert "unregistered" in letter_of(server, genuine)


def test_a_message_that_was_sent_again_is_recognised_although_marked(
    app: Greenq, server: Server
) -> None:
    """A signature must not keep `publish_once` from finding what a worker gave back."""
    broker, text = app.transport.broker, message(app, "twice", queue="nobody")
    server.client.lpush("nobody", broker.requeue("tag", "nobody", text, "next").text)
    assert broker.publish_once("nobody", [text]) is False
    assert server.client.llen("nobody") == 1


def test_messages_for_all_workers_are_checked(server: Server) -> None:
    settings = {"security_signing_key": KEY}
    options = ("-Q", "all")
    with greenq_worker(server.url, *options, app="broadcast_greenq", settings=settings) as worker:
        worker.wait_text("is ready")
        signed, unsigned = client(server), client(server, None)
        for app, number in ((unsigned, 1), (signed, 2)):
            app.conf.update(task_queues=["celery", Broadcast("all")])
            app.send_task("broadcast.note", (number,), exchange="all")
        wait_until(lambda: server.client.llen("heard"), WAIT_S)
        assert [entry.split()[1] for entry in server.client.lrange("heard", 0, -1)] == [b"2"]
        signed.close()
        unsigned.close()


# --- recovery -------------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[Server]:
    with valkey() as server:
        yield server


def test_what_a_dead_worker_held_runs_elsewhere(fresh: Server) -> None:
    settings = {"security_signing_key": KEY, "worker_lease": 0.6}
    app = client(fresh)
    with greenq_worker(fresh.url, app="ledger_app", settings=settings) as first:
        results = [app.send_task("ledger.wait", (f"t{i}",)) for i in range(5)]
        wait_until(lambda: fresh.client.llen("ledger") == 5, WAIT_S)
        first.kill()
    with greenq_worker(fresh.url, app="ledger_app", settings=settings):
        fresh.client.set("gate", 1)
        assert [each.get(timeout=WAIT_S) for each in results] == [f"t{i}" for i in range(5)]
        fresh.wait_settled()
    assert not fresh.dead_letters()
    app.close()


def test_recovery_neither_signs_nor_believes_what_is_forged(fresh: Server) -> None:
    """A forged message says that four workers died of it: no failure is stored under its id."""
    settings = {"security_signing_key": KEY, "worker_lease": 0.6, "task_max_deliveries": 1}
    stranger, app = client(fresh, None), client(fresh)
    with greenq_worker(fresh.url, "-n", "first", settings=settings) as first:
        # Running, so that the worker has an owner's record and a lease.
        app.send_task("shared.sleep", (60,), task_id="genuine")
        wait_until(lambda: fresh.client.hlen("unacked"), WAIT_S)
        first.send_signal(signal.SIGSTOP)
        tag = next(iter(fresh.unacked())).decode()
        owner = tag.rpartition(":")[0]
        options = {"task_id": "forged"}
        text = stranger.producer.prepare("shared.add", (1, 2), {}, options)["text"]
        fresh.client.hset("unacked", f"{owner}:99", f'[{text}, "", "celery"]')
        fresh.client.zadd("unacked_index", {f"{owner}:99": 1e10})
        first.kill()
    with greenq_worker(fresh.url, "-n", "second", settings=settings):
        assert letter_of(fresh, "forged") == UNSIGNED
        assert "died" in letter_of(fresh, "genuine")
    assert fresh.client.exists("celery-task-meta-genuine")
    assert not fresh.client.exists("celery-task-meta-forged")
    stranger.close()
    app.close()


# --- results --------------------------------------------------------------------------------------


def test_a_forged_result_is_refused(app: Greenq, stranger: Greenq, server: Server) -> None:
    backend = stranger.backend
    backend.store("forged-result", "SUCCESS", 42)
    with pytest.raises(SignatureError, match=r"task forged-result is refused: unsigned"):
        app.AsyncResult("forged-result").get(timeout=WAIT_S)
    with pytest.raises(SignatureError):
        _ = app.AsyncResult("forged-result").state


def test_the_result_of_another_task_is_refused(app: Greenq, server: Server) -> None:
    result = app.send_task("shared.add", (1, 2))
    assert result.get(timeout=WAIT_S) == 3
    stored = server.client.get(f"celery-task-meta-{result.id}")
    server.client.set("celery-task-meta-another", stored)
    with pytest.raises(SignatureError, match="signed as the result of task"):
        app.AsyncResult("another").get(timeout=WAIT_S)


def test_a_forged_announcement_does_not_end_the_wait(
    app: Greenq, stranger: Greenq, server: Server
) -> None:
    waiting = app.send_task("shared.sleep", (1.5, "genuine"))
    key = f"celery-task-meta-{waiting.id}"
    forged = stranger.backend.stored(waiting.id, "SUCCESS", "forged").payload
    heard: list[dict[str, Any]] = []

    def announce() -> bool:
        return bool(server.client.publish(key, forged))

    thread = threading.Thread(target=lambda: wait_until(announce, WAIT_S))
    thread.start()
    assert waiting.get(timeout=WAIT_S, on_message=heard.append) == "genuine"
    thread.join()
    assert [each["result"] for each in heard] == ["genuine"]


def test_forged_announcements_do_not_outlast_the_timeout(
    app: Greenq, stranger: Greenq, server: Server
) -> None:
    key = "celery-task-meta-never"
    forged = stranger.backend.stored("never", "SUCCESS", "forged").payload
    over = threading.Event()

    def announce() -> None:
        while not over.is_set():
            server.client.publish(key, forged)

    thread = threading.Thread(target=announce)
    thread.start()
    try:
        with pytest.raises(ResultTimeout):
            app.AsyncResult("never").get(timeout=0.5)
    finally:
        over.set()
        thread.join()


# --- remote control and events --------------------------------------------------------------------


def test_unsigned_requests_are_dropped_and_counted(
    app: Greenq, stranger: Greenq, running: tuple[Server, Process]
) -> None:
    worker = running[1]
    before = refused(app).get(f"request: {UNSIGNED}", 0)
    assert stranger.control.inspect(timeout=0.5).ping() is None
    stranger.control.shutdown()
    assert app.control.inspect(timeout=5, limit=1).ping()
    assert refused(app)[f"request: {UNSIGNED}"] == before + 2
    worker.wait_text("a control request was dropped: unsigned")
    assert worker.alive


def test_a_revocation_of_a_result_handle_is_signed(app: Greenq) -> None:
    result = app.send_task("shared.add", (1, 2), countdown=30)
    result.revoke()
    inspect = app.control.inspect(timeout=5, limit=1)
    wait_until(lambda: result.id in next(iter(inspect.revoked().values())), WAIT_S)


def test_replies_that_are_not_signed_are_dropped(server: Server, stranger: Greenq) -> None:
    """A worker without a key answers anyone; who has a key believes only signed replies."""
    with valkey() as other, greenq_worker(other.url):
        asker = client(other)
        assert asker.control.inspect(timeout=1).ping() is None
        plain = client(other, None)
        assert plain.control.inspect(timeout=5, limit=1).ping()
        asker.close()
        plain.close()


def test_unsigned_events_of_workers_are_ignored(app: Greenq, server: Server) -> None:
    before = refused(app).get(f"event: {UNSIGNED}", 0)
    writer = EventWriter("evil@host", app.clock)
    for kind in ("worker-online", "worker-elect"):
        fields = {"id": "e", "topic": "task", "action": None, "cver": 1, "freq": 2.0}
        channel = app.transport.keys.fanout("celeryev", kind.replace("-", "."))
        assert server.client.publish(channel, writer.write(writer.stamp(kind, fields)))
    wait_until(lambda: refused(app).get(f"event: {UNSIGNED}", 0) == before + 2, WAIT_S)


def test_workers_with_a_key_elect_one_of_them(fresh: Server) -> None:
    settings = {"security_signing_key": KEY}
    app = client(fresh)
    with (
        greenq_worker(fresh.url, "-n", "a", settings=settings) as first,
        greenq_worker(fresh.url, "-n", "b", settings=settings) as second,
    ):
        ping = app.control.inspect(timeout=5, limit=2).ping
        wait_until(lambda: len(ping() or ()) == 2, WAIT_S)
        action = {"task": "shared.add", "args": [1, 2], "options": {"task_id": "elected"}}
        app.control.election("one", "task", action)
        assert app.AsyncResult("elected").get(timeout=WAIT_S) == 3
        # Each has heard the other's vote: the events of both are signed.
        for worker in (first, second):
            worker.wait_text("elected for task one")
    app.close()


# --- keys -----------------------------------------------------------------------------------------


def test_keys_are_exchanged_in_three_steps_without_a_refusal(fresh: Server) -> None:
    """At each step some of the programs have made it, and others have not."""
    before = {"security_signing_key": OLD}
    accepts = {"security_signing_key": OLD, "security_accepted_signing_keys": [KEY]}
    signs = {"security_signing_key": KEY, "security_accepted_signing_keys": [OLD]}
    after = {"security_signing_key": KEY}
    for one, other in ((before, accepts), (accepts, signs), (signs, after)):
        for worker, sender in ((one, other), (other, one)):
            with greenq_worker(fresh.url, settings=worker):
                app = Greenq("client", broker=fresh.url, set_as_current=False, **sender)
                assert app.send_task("shared.retry_until", (1,)).get(timeout=WAIT_S) == 1
                assert app.control.inspect(timeout=5, limit=1).ping()
                app.close()
    assert not fresh.dead_letters()


def test_signing_is_introduced_with_signatures_that_are_not_required(fresh: Server) -> None:
    settings = {"security_signing_key": KEY, "security_require_signatures": False}
    lenient, plain = client(fresh, security_require_signatures=False), client(fresh, None)
    for worker in (settings, {}):
        with greenq_worker(fresh.url, settings=worker):
            for app in (lenient, plain):
                assert app.send_task("shared.retry_until", (1,)).get(timeout=WAIT_S) == 1
                assert app.control.inspect(timeout=5, limit=1).ping()
    with greenq_worker(fresh.url, settings=settings):
        changed = message(lenient, "changed").replace(b'"retries": 0', b'"retries": 1')
        fresh.client.lpush("celery", changed)
        assert letter_of(fresh, "changed") == WRONG
    lenient.close()
    plain.close()


def test_a_key_is_never_shown(app: Greenq, running: tuple[Server, Process]) -> None:
    inspect = app.control.inspect(timeout=5, limit=1)
    told = [inspect.conf(with_defaults=True), inspect.report(), inspect.stats()]
    told += [repr(app.conf), repr(app.config), repr(app.config.security), repr(app)]
    assert "key-key" not in f"{told}{running[1].text}"
    assert "security_signing_key" in f"{told}"
    with pytest.raises(ConfigError) as wrong:
        _ = Greenq("a", security_signing_key="key-key", set_as_current=False).config
    assert "at least 32 bytes" in str(wrong.value)
    assert "key-key" not in str(wrong.value)


def test_a_key_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    named = Greenq("a", security_signing_key=f"@{file}", set_as_current=False)
    assert named.config.security.security_signing_key == KEY.encode()
    with pytest.raises(ConfigError, match="cannot be read"):
        _ = Greenq("a", security_signing_key=f"@{file}s", set_as_current=False).config


def test_keys_to_accept_need_one_to_sign_with() -> None:
    with pytest.raises(ConfigError, match="needs a security_signing_key"):
        _ = Greenq("a", security_accepted_signing_keys=[KEY], set_as_current=False).config


def test_a_mark_of_a_worker_without_a_key_leaves_no_wrong_signature(app: Greenq) -> None:
    assert b"greenq_sig" not in mark_redelivered(message(app, "marked")).encode()
