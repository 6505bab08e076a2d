"""`greenq demo` as a program, what it leaves behind, what its report says; and the examples."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from greenq.cli import demo, main
from greenq.cli.demo.figures import DemoSample, Figures, charts, resample, rows, sparkline
from greenq.errors import GreenqError
from tests.servers import ROOT, Process, free_port
from tests.support import wait_until

EXAMPLES = ROOT / "examples"


class Demo:
    """One `greenq demo`, whose temporary folder is in a folder of the test's own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.place = folder / "tmp"
        self.place.mkdir()
        clean = {name: text for name, text in os.environ.items() if not name.startswith("GREENQ_")}
        self.process = Process(
            [sys.executable, "-m", "greenq", "demo", *options],
            folder / "output.txt",
            clean | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.place), "COLUMNS": "100"},
            folder,
        )

    @property
    def text(self) -> str:
        return self.process.text

    def wait_fetching(self) -> None:
        """Wait until some fetches have ended and many are under way."""

        def fetching() -> bool:
            assert self.process.alive, self.text
            return re.search(r" [1-9]\d* of [\d,]+ done", self.text) is not None

        wait_until(fetching, 30)

    def companions(self) -> list[str]:
        """Return the programs that still run with this demo's environment, by their command."""
        mark = f"TMPDIR={self.place}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Start demos; those that a failed test leaves running are ended."""
    started: list[Demo] = []

    def start(*options: str) -> Demo:
        started.append(Demo(tmp_path, *options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()


@pytest.fixture
def sees_processes() -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to see which processes belong to a demo")


class Answers(BaseHTTPRequestHandler):
    """Answers /200 with that status and a body, any other number with an error."""

    def do_GET(self) -> None:
        status = int(self.path.strip("/"))
        if status == 200:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"all well")
        else:
            self.send_error(status)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output quiet."""


@contextmanager
def web_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# --- the program ----------------------------------------------------------------------------------


def test_demo_fetches_all_and_scales_up_and_down(start_demo: Callable[..., Demo]) -> None:
    run = start_demo("--tasks", "600", "--autoscale", "100,5")
    assert run.process.wait_exit(60) == 0, run.text

    assert re.search(r"succeeded +600 +of 600", run.text), run.text
    assert re.search(r"failed +0\b", run.text)
    assert re.search(r"ideal 1\.20, with 100 at once", run.text)
    assert re.search(r"peak concurrency +100 ", run.text)
    # While it runs: the pool at its most. Afterwards: back at its least.
    assert "pool 100," in run.text
    assert re.findall(r"600 of 600 done.* pool (\d+),", run.text)[-1] == "5"


def test_demo_costs_about_one_round_trip_a_task_beside_the_sending(
    start_demo: Callable[..., Demo],
) -> None:
    run = start_demo("--tasks", "2000")
    assert run.process.wait_exit(60) == 0, run.text

    told = dict(
        re.findall(r"(commands per task|round trips per task|connections) +([\d.]+)", run.text)
    )
    # Each fetch is pushed and stored by a command of its own, and announced if anyone listens.
    assert 2 <= float(told["commands per task"]) < 8
    assert 1 <= float(told["round trips per task"]) < 2
    assert 1 <= int(told["connections"]) <= 10


@pytest.mark.usefixtures("sees_processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_leaves_nothing_behind_when_it_is_interrupted(
    start_demo: Callable[..., Demo], number: signal.Signals
) -> None:
    run = start_demo("--tasks", "20000")
    run.wait_fetching()
    for name in ("http_server.py", "keeper.py", "valkey-server"):
        assert any(name in command for command in run.companions())

    run.process.send_signal(number)
    assert run.process.wait_exit() == 130, run.text

    assert re.search(r"stopped: [\d,]+ of 20,000 fetched", run.text)
    assert "Traceback" not in run.text
    assert list(run.place.iterdir()) == []
    wait_until(lambda: not run.companions())


# A sender whose pipes stay open for a while after it was killed: a reader waits at them meanwhile.
INTERRUPTED = """
from greenq.hub import patch, sleep
patch()
from greenq.cli.demo.run import Sending, _process
sender = "import subprocess, time; subprocess.Popen(['sleep', '1']); time.sleep(60)"
with _process("-c", sender) as process, Sending(process, ["url"]) as sending:
    sleep(0.5)
    assert not sending.ended
print("ended")
"""


def test_interrupted_sending_closes_no_pipe_that_is_being_read() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.stdout, ended.stderr) == ("ended\n", "")


@pytest.mark.usefixtures("sees_processes")
def test_demo_leaves_no_process_behind_when_it_is_killed(start_demo: Callable[..., Demo]) -> None:
    run = start_demo("--tasks", "20000")
    run.wait_fetching()

    os.kill(run.process.pid, signal.SIGKILL)

    wait_until(lambda: not run.companions(), 20)


def test_demo_counts_failures_with_their_reasons(
    start_demo: Callable[..., Demo], tmp_path: Path
) -> None:
    urls = tmp_path / "urls.txt"
    with web_server() as base:
        refused = f"http://127.0.0.1:{free_port()}/"
        lines = ["# mine", f"{base}/200", "", *[f"{base}/404"] * 2, f"{base}/503", refused]
        urls.write_text("\n".join(lines), "utf-8")
        run = start_demo("--urls", str(urls))
        assert run.process.wait_exit(60) == 1, run.text

    assert re.search(r"succeeded +1 +of 5", run.text), run.text
    assert re.search(r"failed +4\b", run.text)
    assert "the 1 response times add up to" in run.text
    assert re.search(r"2 +RuntimeError: answered 404 Not Found", run.text)
    assert re.search(r"1 +RuntimeError: answered 503 Service Unavailable", run.text)
    assert re.search(r"1 +URLError: .*Connection refused", run.text)


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "http://a.example/\nfile:///etc/hosts\n",
            r"line 2: 'file:///etc/hosts' is not an http://",
        ),
        ("http://a.example/b c\n", r"line 1: 'http://a.example/b c' is not an http://"),
        ("http://[a.example/\n", r"line 1: .* is not an http://"),
        ("https:///nowhere\n", r"line 1: .* is not an http://"),
        ("# nothing\n\n", r"contains no URL"),
    ],
)
def test_url_list_is_refused_with_the_line(tmp_path: Path, content: str, complaint: str) -> None:
    urls = tmp_path / "urls.txt"
    urls.write_text(content, "utf-8")
    with pytest.raises(GreenqError, match=complaint):
        demo.read_urls(urls)


def test_url_list_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(GreenqError, match=r"nowhere\.txt: cannot be read"):
        demo.read_urls(tmp_path / "nowhere.txt")


def test_url_list_and_number_of_tasks_exclude_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--urls", "list.txt", "--tasks", "3"])
    assert "not allowed with" in capsys.readouterr().err


def test_missing_display_library_is_named_with_the_remedy(tmp_path: Path) -> None:
    # An interpreter that finds everything but rich.
    program = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'rich' else find(name, *a)\n"
        "from greenq.cli import main; sys.exit(main(['demo']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stderr.strip() == (
        "greenq demo: the demo needs rich, which is missing: pip install 'greenq[demo]'"
    )


# --- the report -----------------------------------------------------------------------------------


def _figures(**changed: object) -> Figures:
    samples = [
        DemoSample(at_s=second / 10, succeeded=0, failed=0, running=0, size=size, depth=depth)
        for second, (size, depth) in enumerate([(10, 0), (500, 4000), (500, 2000), (10, 0)])
    ]
    fields: dict[str, object] = {
        "total": 1000, "succeeded": 999, "reasons": {"TimeoutError: timed out": 1}, "seconds": 2.5,
        "sent_s": 0.5, "ideal_s": 0.4, "response_s": 200.0, "least": 10, "most": 500, "peak": 500,
        "peak_at_s": 0.25, "commands": 3500, "reads": 1200, "connections": 3, "cpu_s": 0.5,
        "samples": samples,
    }  # fmt: skip
    return Figures(**fields | changed)  # type: ignore[arg-type]


def test_rows_divide_by_tasks_and_count_what_did_not_succeed_as_failed() -> None:
    told = {name: value for name, value, _ in rows(_figures()) if name}
    assert told == {
        "succeeded": "999",
        "failed": "1",
        "seconds": "2.50",
        "fetches per second": "400.0",
        "peak concurrency": "500",
        "Redis commands per task": "3.50",
        "round trips per task": "1.20",
        "worker's connections": "3",
        "worker's processor time": "0.50 s",
    }


def test_charts_stand_on_one_time_axis_and_fit_the_width() -> None:
    lines = charts(_figures(), 80)
    assert max(map(len, lines)) <= 80
    size, depth = lines.index("pool size, 10 to 500"), lines.index("queue depth")
    # A row above half height: the pool passes it in two quarters of the time, the queue in one.
    pool_row, queue_row = lines[size + 4], lines[depth + 4]
    assert pool_row.index("█") == queue_row.index("█")
    assert len(queue_row) < len(pool_row) < 80
    assert lines[size + 1].startswith("    500 ┤")
    assert lines[depth + 1].startswith("  4,000 ┤")


@pytest.mark.parametrize(
    ("at_s", "values", "expected"),
    [
        ([0.0, 1.0], [1, 2], [1, 1, 1, 2]),
        ([0.0, 0.1, 0.2, 1.0], [1, 9, 3, 2], [9, 9, 9, 2]),
        ([0.0], [7], [7, 7, 7, 7]),
    ],
)
def test_resample_keeps_peaks_and_holds_the_last_value(
    at_s: list[float], values: list[int], expected: list[int]
) -> None:
    assert resample(at_s, values, at_s[-1], 4) == expected


def test_sparkline_scales_to_the_largest_value() -> None:
    assert sparkline([0, 4, 8]) == "▁▄█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


# --- the examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("hello", ["Ada"], r"^Hello, Ada!$"),
        ("retries", [], r"patient: +done after \d+ retries\nautomatic: (done|failed in the end)"),
        ("newsletter", ["50"], r"^49 of 50 delivered in [\d.]+ s\nfailed: ValueError"),
    ],
)
def test_example_runs_as_its_docstring_says(
    tmp_path: Path, name: str, arguments: list[str], expected: str
) -> None:
    assert re.search(expected, _run_example(tmp_path, name, arguments))


def test_fetch_example_fetches_what_it_is_given(tmp_path: Path) -> None:
    with web_server() as base:
        printed = _run_example(tmp_path, "fetch", [f"{base}/200"])
    assert re.search(r"'status': 200, 'bytes': 8,", printed)


def _run_example(tmp_path: Path, name: str, arguments: list[str]) -> str:
    """Run an example's worker and its script beside it; return what the script printed."""
    clean = {key: text for key, text in os.environ.items() if not key.startswith("GREENQ_")}
    env = clean | {
        "PYTHONPATH": str(ROOT),
        "GREENQ_DATA": str(tmp_path / "data"),
        "no_proxy": "127.0.0.1",
    }
    worker = Process(
        [sys.executable, "-m", "greenq", "worker", "-A", name, "-c", "20", "-l", "INFO"],
        tmp_path / "worker.log",
        env,
        EXAMPLES,
    )
    try:
        worker.wait_text("Connected to ")
        ended = subprocess.run(
            [sys.executable, f"{name}.py", *arguments],
            env=env,
            cwd=EXAMPLES,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        worker.stop()
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
