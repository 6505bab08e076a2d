"""`greenq top` with a real server and real workers, and on a real (pseudo) terminal."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from greenq import Greenq
from tests.servers import APPS, ROOT, Server, celery_worker, greenq_worker, valkey
from tests.support import wait_until

WAIT_S = 20

ENTERS, LEAVES = b"\x1b[?1049h", b"\x1b[?1049l"
SHOWS_CURSOR = b"\x1b[?25h"

# The command as `greenq` runs it, and then: what it must not have needed.
COMMAND = """
import sys
from greenq.cli import main
code = main(["top", *sys.argv[1:]])
assert "gevent" not in sys.modules
sys.exit(code)
"""


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GREENQ_")}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        clean.pop(name, None)
    return clean | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}


def top(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "-b", url, *options],
        env=environment(),
        cwd=APPS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def top_while(url: str, act: Callable[[], object], *options: str) -> Any:
    """Return the JSON that it writes while something happens again and again."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "-b", url, "--json", *options],
        env=environment(),
        cwd=APPS,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: act() and process.poll() is not None, 60)
        text, errors = process.communicate()
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (0, "")
    return json.loads(text)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    """A worker that tells of tasks, one that does not, and a Celery one."""
    with (
        valkey() as server,
        greenq_worker(server.url, "-n", "one@h", "-c", "20", "-E"),
        greenq_worker(server.url, "-n", "two@h", "-Q", "mail"),
        celery_worker(server.url, "-n", "old@h", "-Q", "other"),
    ):
        yield server


@pytest.fixture
def app(cluster: Server) -> Iterator[Greenq]:
    with Client(cluster.url) as client:
        yield client


@contextmanager
def Client(url: str) -> Iterator[Greenq]:  # noqa: N802
    client = Greenq("client", broker=url, set_as_current=False)
    yield client
    client.close()


# --- one picture ----------------------------------------------------------------------------------


def test_json_tells_of_workers_of_both_kinds_queues_tasks_and_greenlets(
    cluster: Server, app: Greenq
) -> None:
    app.send_task("shared.sleep", (8,))
    wait_until(lambda: app.control.inspect().status()["one@h"]["active"], WAIT_S)

    def send() -> bool:
        return all(
            app.send_task(f"shared.{name}", args)
            for name, args in (("add", (1, 2)), ("fail_value", ("x", 1)))
        )

    told = top_while(cluster.url, send, "--interval", "2")
    workers = told["workers"]

    assert [(node, each["state"], each["ours"]) for node, each in workers.items()] == [
        ("old@h", "ok", False),
        ("one@h", "ok", True),
        ("two@h", "ok", True),
    ]
    one = workers["one@h"]
    assert (one["size"], one["running"] > 0, one["per_s"] > 0) == (20, True, True)
    assert 0 <= one["lag_s"] < 5
    assert 0 < one["lag_p99_s"] < 5
    assert {"celery", "mail", "other"} <= told["queues"].keys()
    assert told["tasks"]["shared.add"]["counts"]["succeeded"] > 0
    failed = told["tasks"]["shared.fail_value"]
    assert failed["counts"]["failed"] > 0
    assert failed["per_s"]["failed"] > 0
    greenlets = told["greenlets"]
    assert greenlets["node"] == "one@h"
    assert {"waits_on": "sleep 8", "count": 1} in greenlets["reply"]["groups"]


def test_once_is_one_picture_as_text(cluster: Server) -> None:
    ended = top(cluster.url, "--once", "--interval", "0.2")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    first, *others = ended.stdout.splitlines()
    assert first.startswith(" greenq top   redis://127.0.0.1")
    assert "3 workers" in first
    workers = others[others.index("") + 2 :][:3]
    assert [each.removeprefix("▸").split()[:2] for each in workers] == [
        ["old@h", "ok"],
        ["one@h", "ok"],
        ["two@h", "ok"],
    ]
    assert any(each.startswith(" GREENLETS of one@h") for each in others)


def test_destination_is_looked_at_alone(cluster: Server) -> None:
    ended = top(cluster.url, "--json", "--interval", "0.2", "-d", "two@h")

    assert list(json.loads(ended.stdout)["workers"]) == ["two@h"]


def test_events_are_asked_for_on_request_and_switched_off_again(server: Server) -> None:
    with greenq_worker(server.url, "-n", "w@h"), Client(server.url) as app:
        told = top_while(
            server.url, lambda: app.send_task("shared.add", (1, 2)), "--events", "--interval", "2"
        )
        assert told["tasks"]["shared.add"]["counts"]["received"] > 0
        assert app.control.enable_events(reply=True) == [{"w@h": {"ok": "task events enabled"}}]


def test_worker_whose_hub_is_blocked_says_by_what(server: Server) -> None:
    with (
        greenq_worker(server.url, "-n", "w@h", app="limits_app") as process,
        Client(server.url) as app,
    ):
        app.send_task("limits_app.compute", (30,))
        wait_until(lambda: app.control.inspect().status()["w@h"]["ok"] == "blocked", WAIT_S)
        ended = top(server.url, "--json", "--interval", "0.2")
        worker = json.loads(ended.stdout)["workers"]["w@h"]
        # It would compute to the end first.
        process.kill()

    assert worker["state"] == "blocked"
    assert "by limits_app.compute[" in worker["details"]


@pytest.mark.parametrize("options", [[], ["--once"], ["--json"]])
def test_without_workers_it_ends_with_69(server: Server, options: list[str]) -> None:
    with Terminal(server.url, *options) as terminal:
        code = terminal.wait()

    assert code == 69
    assert b"no node has replied" in terminal.seen
    assert ENTERS not in terminal.seen


def test_without_a_terminal_it_says_what_else_there_is(cluster: Server) -> None:
    ended = top(cluster.url)

    assert ended.returncode == 1
    assert ended.stderr == "greenq top: not a terminal: print one snapshot with --once or --json\n"


def test_missing_display_library_is_named_with_the_remedy(cluster: Server) -> None:
    # An interpreter that finds everything but rich.
    program = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'rich' else find(name, *a)\n"
        "from greenq.cli import main; sys.exit(main(['top', *sys.argv[1:]]))"
    )
    ended, told = (
        subprocess.run(
            [sys.executable, "-c", program, "-b", cluster.url, "--interval", "0.1", option],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        for option in ("--once", "--json")
    )

    assert ended.returncode == 1
    assert ended.stderr == (
        "greenq top: rich is missing: pip install 'greenq[demo]', or use --json\n"
    )
    assert (told.returncode, len(json.loads(told.stdout)["workers"])) == (0, 3)


# --- on a terminal --------------------------------------------------------------------------------


class Terminal:
    """`greenq top` on a terminal of its own; what it writes is read all the time."""

    def __init__(self, url: str, *options: str, width: int = 80, height: int = 24) -> None:
        self.seen = bytearray()
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.before = self.settings
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "-b", url, *options],
            env=environment(),
            cwd=APPS,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._theirs)
        self._reader.join(WAIT_S)
        os.close(self._ours)

    @property
    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    @property
    def text(self) -> str:
        """What it has written, without colours and moves of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen.decode("utf-8", "replace"))

    def press(self, keys: str) -> None:
        """Type, and forget what was seen."""
        self.seen.clear()
        os.write(self._ours, keys.encode())

    def wait_text(self, text: str) -> None:
        """Wait until it has written that."""
        try:
            wait_until(lambda: text in self.text, WAIT_S)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in:\n{self.text}") from None

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(WAIT_S)

    def check_restored(self) -> None:
        """Fail unless the terminal is as it was."""
        # What came last may not have been read yet.
        wait_until(lambda: LEAVES in self.seen and SHOWS_CURSOR in self.seen, WAIT_S)
        assert self.seen.count(ENTERS) <= self.seen.count(LEAVES)
        assert self.settings == self.before
        assert b"Traceback" not in self.seen

    def _read(self) -> None:
        try:
            while piece := os.read(self._ours, 65536):
                self.seen.extend(piece)
        except OSError as exc:
            # That is how the end of a terminal is told.
            if exc.errno != errno.EIO:
                raise


def test_screen_is_drawn_and_q_gives_the_terminal_back(cluster: Server) -> None:
    with Terminal(cluster.url) as terminal:
        terminal.wait_text("q quit")
        assert ENTERS in terminal.seen
        assert terminal.settings != terminal.before
        assert "3 workers" in terminal.text
        assert "▸one@h" in terminal.text
        assert "QUEUE" in terminal.text
        terminal.press("q")

        assert terminal.wait() == 0
        terminal.check_restored()


def test_keys_choose_a_worker_show_its_greenlets_and_pause(cluster: Server) -> None:
    with Terminal(cluster.url, "--interval", "0.3") as terminal:
        terminal.wait_text("▸one@h")
        terminal.press("g")
        terminal.wait_text("GREENLETS of one@h")
        terminal.press("\x1b[B")
        terminal.wait_text("GREENLETS of two@h   0 running")
        terminal.press("\t")
        terminal.wait_text("only greenq's workers report their greenlets")
        terminal.press("p")
        terminal.wait_text("PAUSED")
        terminal.press("\x1b[A")
        terminal.wait_text("GREENLETS of two@h")
        terminal.press("p")
        terminal.wait_text("p pause")
        terminal.press("g")
        terminal.wait_text("QUEUE")
        terminal.press("q")

        assert terminal.wait() == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_give_the_terminal_back_too(
    cluster: Server, number: signal.Signals, code: int
) -> None:
    with Terminal(cluster.url) as terminal:
        terminal.wait_text("q quit")
        terminal.process.send_signal(number)

        assert terminal.wait() == code
        terminal.check_restored()


def test_suspending_gives_the_terminal_back_for_a_while(cluster: Server) -> None:
    with Terminal(cluster.url) as terminal:
        terminal.wait_text("q quit")
        # It leads a group that nobody could continue: such a one is never stopped, so it goes on.
        terminal.press("\x1a")
        wait_until(lambda: terminal.seen.find(ENTERS) > terminal.seen.find(LEAVES) >= 0, WAIT_S)
        terminal.wait_text("q quit")
        terminal.press("q")

        assert terminal.wait() == 0
        terminal.check_restored()


def test_screen_follows_the_size_of_the_terminal(cluster: Server) -> None:
    with Terminal(cluster.url, "--interval", "60", width=160, height=50) as terminal:
        terminal.wait_text("GREENLETS of one@h")
        terminal.wait_text("q quit")
        # The screen may be drawn anew before the next line runs, so forget the old one first.
        terminal.seen.clear()
        fcntl.ioctl(terminal._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 70, 0, 0))
        terminal.wait_text("q quit")

        assert "GREENLETS" not in terminal.text
        assert max(len(line) for line in terminal.text.splitlines()) == 70


def test_lost_server_is_said_and_forgotten_when_it_is_back() -> None:
    with (
        valkey() as server,
        greenq_worker(server.url, "-n", "w@h"),
        Terminal(server.url, "--interval", "0.2", width=160) as terminal,
    ):
        terminal.wait_text("p pause")
        server.stop()
        wait_until(lambda: re.search("(reach|lost|hung)", terminal.text), WAIT_S)
        server.start()
        terminal.press("")
        terminal.wait_text("p pause")
        terminal.press("q")

        assert terminal.wait() == 0
        terminal.check_restored()
