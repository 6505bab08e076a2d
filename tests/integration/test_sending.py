"""Sending: where settings come from, what a program needs, and what happens without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenq import Greenq
from greenq.errors import (
    ConfigError,
    EncodeError,
    NotAllSent,
    OperationalError,
    ResultsDisabled,
)
from greenq.protocol.envelope import mark_redelivered
from tests.servers import ROOT, Server, greenq_worker

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def client(server: Server) -> Iterator[Greenq]:
    app = Greenq("client", broker=server.url, set_as_current=False)
    yield app
    app.close()


# --- settings ------------------------------------------------------------------------------------


def _as_module() -> object:
    module = types.ModuleType("settings_of_a_test")
    module.task_default_queue = "mail"  # type: ignore[attr-defined]
    module.result_expires = 60  # type: ignore[attr-defined]
    return module


class SettingsClass:
    task_default_queue = "mail"
    result_expires = 60


class DjangoSettings:
    CELERY_TASK_DEFAULT_QUEUE = "mail"
    CELERY_RESULT_EXPIRES = 60
    DEBUG = True


SOURCES = {
    "module": (_as_module(), None),
    "class": (SettingsClass, None),
    "object": (SettingsClass(), None),
    "mapping": ({"task_default_queue": "mail", "result_expires": 60}, None),
    "name": ("tests.integration.test_sending:SettingsClass", None),
    "namespace": (DjangoSettings, "CELERY"),
}


@pytest.mark.parametrize(("source", "namespace"), SOURCES.values(), ids=SOURCES)
def test_settings_come_from_any_kind_of_source(source: object, namespace: str | None) -> None:
    app = Greenq("settings", set_as_current=False)
    app.config_from_object(source, namespace=namespace)
    assert (app.conf.task_default_queue, app.conf.result_expires) == ("mail", 60)


def test_settings_come_from_the_environment_and_the_program_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GREENQ_TASK_DEFAULT_QUEUE", "mail")
    monkeypatch.setenv("GREENQ_RESULT_EXPIRES", "60")
    app = Greenq("settings", set_as_current=False, result_expires=70)
    assert (app.conf.task_default_queue, app.conf.result_expires) == ("mail", 70)


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean task_acks_late"):
        Greenq("settings", set_as_current=False, task_ack_late=True)


# --- what the sender needs -----------------------------------------------------------------------

PROGRAM = """
import socket, sys, threading
originals = socket.socket, threading.Thread
from greenq import Greenq
app = Greenq("program", broker=sys.argv[1])
results = []
def send(number):
    results.append((number, app.send_task("shared.add", (number, 1))))
threads = [threading.Thread(target=send, args=(number,)) for number in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert all(result.get(timeout=15) == number + 1 for number, result in results)
app.close()
assert (socket.socket, threading.Thread) == originals, "patched"
assert not [name for name in sys.modules if name.partition(".")[0] in ("gevent", "greenlet")]
print("fine")
"""


def test_plain_threads_send_and_wait_without_gevent(server: Server) -> None:
    with greenq_worker(server.url):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.url],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)


def test_what_cannot_be_serialized_is_not_sent(client: Greenq, server: Server) -> None:
    with pytest.raises(EncodeError):
        client.send_task("shared.add", (object(), 1))
    assert not server.client.exists("celery")


def test_an_unknown_option_is_refused_with_the_nearest_name(client: Greenq) -> None:
    with pytest.raises(TypeError, match="did you mean countdown"):
        client.send_task("shared.add", (1, 2), contdown=5)  # type: ignore[call-arg]


# --- many ----------------------------------------------------------------------------------------


def test_many_are_queued_in_order_with_few_commands(client: Greenq, server: Server) -> None:
    client.send_task("shared.add", (0, 0))
    server.flush()
    before = server.client.info("commandstats")["cmdstat_lpush"]["calls"]

    results = client.send_task_many("shared.add", (((n, 1), {}) for n in range(1001)))

    assert server.client.info("commandstats")["cmdstat_lpush"]["calls"] - before == 6
    assert server.queued_ids() == [result.id for result in results]
    bodies = [json.loads(json.loads(text)["headers"]["argsrepr"][1:-4]) for text in server.queued()]
    assert bodies == list(range(1001))


def test_many_go_where_their_options_say(client: Greenq, server: Server) -> None:
    calls = [((n, 1), {}) for n in range(3)]
    client.send_task_many("shared.add", calls, queue="mail", priority=6)
    server.client.sadd("_kombu.binding.news", "sport\x06\x16\x06\x16a", "sport\x06\x16\x06\x16b")
    client.send_task_many("shared.add", calls, exchange="news", routing_key="sport")

    assert [server.client.llen(key) for key in ("mail\x06\x166", "a", "b")] == [3, 3, 3]
    assert b"mail\x06\x16\x06\x16mail" in server.client.smembers("_kombu.binding.mail")


def test_many_run_and_their_results_come_back(client: Greenq, server: Server) -> None:
    @client.task(name="shared.add")
    def add(x: int, y: int) -> int:
        return x + y

    @client.task(name="shared.echo")
    def echo(*args: object, **kwargs: object) -> list[object]:
        return [list(args), kwargs]

    with greenq_worker(server.url, "-c", "50"):
        sums = add.delay_many((n, 1) for n in range(1000))
        echoes = echo.apply_async_many([((1, "ü"), {"k": [2]}), ((), {})], countdown=0.1)

        assert [result.get(timeout=15) for result in sums] == [n + 1 for n in range(1000)]
        assert sums[-1].get(timeout=15) == 1000
        assert [result.get(timeout=15) for result in echoes] == [[[1, "ü"], {"k": [2]}], [[], {}]]


def test_many_are_sent_by_several_threads_at_once(client: Greenq, server: Server) -> None:
    sent: list[list[str]] = []

    def send(number: int) -> None:
        calls = (((number, n), {}) for n in range(500))
        sent.append([result.id for result in client.send_task_many("shared.add", calls)])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    queued = server.queued_ids()
    assert len(queued) == len(set(queued)) == 4000
    for ids in sent:
        mine = set(ids)
        assert [task_id for task_id in queued if task_id in mine] == ids


def test_what_came_before_a_wrong_item_is_sent(client: Greenq, server: Server) -> None:
    calls = [*(((n, 1), {}) for n in range(250)), ((object(), 1), {}), ((9, 9), {})]

    with pytest.raises(NotAllSent, match="250 items were sent, and no others") as caught:
        client.send_task_many("shared.add", calls)

    assert server.queued_ids() == list(caught.value.ids)
    assert len(caught.value.ids) == 250


def test_tasks_are_sent_although_results_are_disabled(server: Server) -> None:
    app = Greenq("c", broker=server.url, result_backend="disabled://", set_as_current=False)
    result = app.send_task("shared.add", (1, 2))
    results = app.send_task_many("shared.add", [((1, 2), {})])

    assert server.queued_ids() == [result.id, results[0].id]
    with pytest.raises(ResultsDisabled):
        result.get(timeout=1)
    app.close()


def _queued(server: Server, texts: list[str]) -> None:
    # All but the newest are on their way or done.
    server.client.lpush("celery", texts[-1], "another")


def _handed_over(server: Server, texts: list[str]) -> None:
    server.client.lpush("greenq.inbox.celery", "another", texts[1])


def _reserved(server: Server, texts: list[str]) -> None:
    server.client.hset("unacked", "tag", f'[{texts[1]}, "", "celery"]')
    server.client.hset("unacked", "other", "x" * 100)


def _parked(server: Server, texts: list[str]) -> None:
    server.client.zadd("greenq.eta.celery", {f"1|{texts[0]}": 5})


def _done(server: Server, _texts: list[str]) -> None:
    server.client.set("celery-task-meta-id-1", "{}")


def _given_back(server: Server, texts: list[str]) -> None:
    # The worker that had taken it was drained, or has left.
    server.client.rpush("celery", "another", mark_redelivered(texts[-1]))


def _given_back_by_a_death(server: Server, texts: list[str]) -> None:
    server.client.rpush("celery", "another", mark_redelivered(texts[-1], 1), "later")


def _given_back_as_a_suspect(server: Server, texts: list[str]) -> None:
    server.client.lpush("celery", "another", mark_redelivered(texts[-1], 2))


def _given_back_and_taken_again(server: Server, texts: list[str]) -> None:
    record = f'[{mark_redelivered(texts[-1], 1)}, "", "celery"]'
    server.client.hset("unacked", "tag", record)


def _nowhere(server: Server, texts: list[str]) -> None:
    # The same ids or texts in other places are no trace.
    server.client.lpush("mail", texts[-1])
    server.client.hset("unacked", "tag", f'[{texts[1]}, "", "mail"]')
    server.client.set("celery-task-meta-id-7", "{}")


@pytest.mark.parametrize(
    "place",
    [
        *(_queued, _handed_over, _reserved, _parked, _done, _nowhere, _given_back),
        *(_given_back_by_a_death, _given_back_as_a_suspect, _given_back_and_taken_again),
    ],
)
def test_messages_that_went_together_are_pushed_again_if_there_is_no_trace_of_any(
    client: Greenq, server: Server, place: Callable[[Server, list[str]], None]
) -> None:
    texts = [f'{{"headers": {{"id": "id-{number}"}}, "properties": {{}}}}' for number in range(3)]
    place(server, texts)
    before = server.client.lrange("celery", 0, -1)

    pushed = client.transport.broker.publish_once(
        "celery", texts, new_ids=[f"id-{number}" for number in range(3)]
    )

    assert pushed is (place is _nowhere)
    after = server.client.lrange("celery", 0, -1)
    new = [text.encode() for text in reversed(texts)]
    assert after == ([*new, *before] if pushed else before)


# --- without a server ----------------------------------------------------------------------------


def test_without_retry_a_missing_server_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Greenq("client", broker=NOWHERE, set_as_current=False)
    pauses_s: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses_s.append)
    with pytest.raises(
        OperationalError, match=r"could not be sent to queue 'celery'.*127\.0\.0\.1"
    ):
        app.send_task("shared.add", (1, 2), retry=False)
    assert pauses_s == []


def test_retries_are_bounded_by_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Greenq("client", broker=NOWHERE, set_as_current=False)
    policy = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.2}
    pauses_s: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses_s.append)
    with pytest.raises(OperationalError):
        app.send_task("shared.add", (1, 2), retry_policy=policy)
    # Between four attempts.
    assert pauses_s == [0.1, 0.2, 0.2]


def test_a_task_is_sent_when_the_server_comes_back(tmp_path: Path) -> None:
    server = Server(tmp_path)
    app = Greenq("client", broker=server.url, set_as_current=False)
    policy = {"max_retries": 100, "interval_start": 0.1, "interval_step": 0}
    failed: list[BaseException] = []

    def send() -> None:
        try:
            app.send_task("shared.add", (1, 2), retry_policy=policy)
        except OperationalError as error:
            failed.append(error)

    sending = threading.Thread(target=send)
    sending.start()
    try:
        server.start()
        sending.join(20)
        assert not failed
        assert server.client.llen("celery") == 1
    finally:
        app.close()
        server.stop()


# --- types ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("file", ["calls.py", "mistakes.py"])
def test_types_of_calls_and_results_are_checked(file: str) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(ROOT / "tests" / "typing" / file)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
    )
    assert checked.stdout.startswith("Success"), checked.stdout + checked.stderr
