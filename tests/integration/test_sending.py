"""Sending: where settings come from, what a program needs, and what happens without a server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenq import Greenq
from greenq.errors import ConfigError, EncodeError, OperationalError
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


# --- without a server ----------------------------------------------------------------------------


def test_without_retry_a_missing_server_is_told_at_once() -> None:
    app = Greenq("client", broker=NOWHERE, set_as_current=False)
    started = time.monotonic()
    with pytest.raises(
        OperationalError, match=r"could not be sent to queue 'celery'.*127\.0\.0\.1"
    ):
        app.send_task("shared.add", (1, 2), retry=False)
    assert time.monotonic() - started < 0.5


def test_retries_are_bounded_by_the_policy() -> None:
    app = Greenq("client", broker=NOWHERE, set_as_current=False)
    policy = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.2}
    started = time.monotonic()
    with pytest.raises(OperationalError):
        app.send_task("shared.add", (1, 2), retry_policy=policy)
    # 0.1 + 0.2 + 0.2 seconds between four attempts
    assert 0.5 <= time.monotonic() - started < 2


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
