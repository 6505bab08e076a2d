"""How ``greenq worker`` starts, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenq import Greenq
from tests.servers import Process, Server, free_port, greenq_worker, spawn_greenq, valkey

WAIT_S = 15
NOWHERE = "redis://127.0.0.1:1/0"

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start workers that may fail; what still runs at the end is killed."""
    started: list[Process] = []

    def spawn(*options: str, url: str = NOWHERE, **more: object) -> Process:
        log = tmp_path / f"worker{len(started)}.log"
        started.append(spawn_greenq(url, log, *options, **more))  # type: ignore[arg-type]
        return started[-1]

    yield spawn
    for worker in started:
        worker.kill()


# Options after `greenq worker -A greenq_app -l INFO`, exit code, what is said.
WRONG_OPTIONS = {
    "unknown option": (["--concurency", "5"], 2, "did you mean --concurrency?"),
    "concurrency is no number": (["-c", "many"], 2, "'many' is not a whole number of at least 1"),
    "no concurrency at all": (["-c", "0"], 2, "'0' is not a whole number of at least 1"),
    "limits in the wrong order": (["--autoscale", "1,10"], 2, "MAX comes first"),
    "unknown level": (["-l", "LOUD"], 2, "is not a log level"),
    "an address that is none": (["-b", "http://here"], 1, "must be a Redis or Valkey URL"),
    "no such module": (["-A", "nowhere_app"], 1, "no module named 'nowhere_app'"),
    "no such attribute": (["-A", "greenq_app:ap"], 1, "greenq_app:ap: has no such name"),
    "no app in the module": (["-A", "functions"], 1, "has no Greenq app"),
    "an app of another kind": (["-A", "greenq_app:json"], 1, "is module, not a Greenq app"),
}


@pytest.mark.parametrize(
    ("options", "code", "said"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS.keys()
)
def test_a_wrong_command_line_is_answered_in_words(
    start: Start, options: list[str], code: int, said: str
) -> None:
    worker = start(*options)
    assert worker.wait_exit() == code
    assert said in worker.text
    assert "Traceback" not in worker.text


def test_an_unknown_setting_is_named_with_the_nearest_one(start: Start) -> None:
    worker = start(env={"GREENQ_TASK_ACK_LATE": "1"})
    assert worker.wait_exit() == 1
    assert "did you mean GREENQ_TASK_ACKS_LATE?" in worker.text
    # Of the module that makes the app, the line that did it is shown.
    assert "greenq_app.py" in worker.text


def test_an_error_in_the_apps_module_is_shown_with_its_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "broken_app.py").write_text("from greenq import Greenq\nsum = 1 / 0\n")
    worker = start("-A", "broken_app", "--workdir", str(tmp_path))
    assert worker.wait_exit() == 1
    assert "module 'broken_app' cannot be imported" in worker.text
    assert 'broken_app.py", line 2' in worker.text
    assert "ZeroDivisionError" in worker.text
    assert "importlib" not in worker.text


def test_the_app_may_be_named_by_the_environment(server: Server, tmp_path: Path) -> None:
    worker = spawn_greenq(
        server.url, tmp_path / "log", "-A", "greenq_app", env={"GREENQ_APP": "greenq_app"}
    )
    try:
        worker.wait_text("Connected to ")
    finally:
        worker.stop()


def test_a_worker_waits_for_its_server_and_begins_when_it_comes(
    start: Start, tmp_path: Path
) -> None:
    # Given a port where nothing listens yet
    server = Server(tmp_path)
    server.port = free_port()
    server.url = f"redis://127.0.0.1:{server.port}/0"
    worker = start(url=server.url)
    worker.wait_text("trying again in")
    assert f"127.0.0.1:{server.port}" in worker.text
    assert "Traceback" not in worker.text
    # When the server comes
    try:
        server.start()
        worker.wait_text("Connected to ")
        # Then the worker works
        app = Greenq("client", broker=server.url, set_as_current=False)
        assert app.send_task("shared.add", (1, 2)).get(timeout=WAIT_S) == 3
        app.close()
        assert worker.stop() == 0
    finally:
        server.stop()


@pytest.mark.parametrize("password", [None, "wrong-secret"])
def test_a_wrong_password_ends_the_worker_and_is_not_shown(
    start: Start, password: str | None
) -> None:
    with valkey(password="right-secret") as server:
        login = f":{password}@" if password else ""
        worker = start(url=f"redis://{login}127.0.0.1:{server.port}/0")
        assert worker.wait_exit() == 1
        assert "refuses the user name or password" in worker.text
        assert "Traceback" not in worker.text
        assert "secret" not in worker.text


def test_the_right_password_opens_and_is_not_shown() -> None:
    with valkey(password="right-secret") as server, greenq_worker(server.url) as worker:
        app = Greenq("client", broker=server.url, set_as_current=False)
        assert app.send_task("shared.add", (1, 2)).get(timeout=WAIT_S) == 3
        app.close()
        assert "********@127.0.0.1" in worker.text
        assert "right-secret" not in worker.text
