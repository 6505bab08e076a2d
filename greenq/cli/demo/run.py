"""The demo itself: runs a server, a web server, a worker and a sender, and watches them.

The demo has four processes: Valkey, the web server, the sender, and this one, which runs the worker
and draws the display. However the demo ends, the other three processes end with it, and the
temporary directory is removed.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from greenq.cli.demo import http_server
from greenq.cli.demo.display import DemoDisplay
from greenq.cli.demo.figures import DemoSample, Figures
from greenq.cli.demo.sender import load_fetch
from greenq.errors import GreenqError
from greenq.hub import Event, Greenlet, Hub, Signals, join_all, sleep, spawn
from greenq.states import READY_STATES, SUCCESS
from greenq.transport.broker import Broker
from greenq.transport.client import Client
from greenq.transport.embedded import keeper
from greenq.transport.embedded.server import EmbeddedServer
from greenq.worker import Worker
from greenq.worker_parts.options import WorkerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from greenq.app import Greenq

_SAMPLE_S = 0.05
# How long the other processes may take to start, and the embedded server to stop.
_START_S = 10.0
_STOP_S = 10.0
# How long the pool is watched after the last fetch. It keeps its size for a second, then shrinks.
_AFTER_S = 2.0
# How many different reasons for failures are shown; failures for other reasons are added up.
_REASONS = 8
# The number of open files needed in addition to one socket for each fetch.
_OTHER_FILES = 200
_INTERRUPTED = 130


def run(urls: Sequence[str] | None, count: int, limits: tuple[int, int]) -> int:
    """Fetch `urls`, or `count` times from the local web server; return the exit code."""
    _allow_files(limits[0] + _OTHER_FILES)
    with ExitStack() as stack:
        interrupt = stack.enter_context(_interruptible())
        folder = stack.enter_context(_folder())
        socket_path = stack.enter_context(_valkey(folder))
        ideal_s = None
        if urls is None:
            port = stack.enter_context(_web_server())
            urls = [f"http://127.0.0.1:{port}/{number}" for number in range(count)]
            ideal_s = math.ceil(count / limits[0]) * http_server.DELAY_S
        broker_url = f"embedded://{quote(str(folder))}"
        app: Greenq = load_fetch(broker_url).app
        stack.callback(app.close)
        probe = Client(f"unix://{quote(socket_path)}", name="greenq-demo")
        stack.callback(probe.close)
        worker, greenlet = stack.enter_context(_working(app, limits, interrupt))
        sender = stack.enter_context(_sender(broker_url))
        display = stack.enter_context(DemoDisplay(len(urls)))
        display.say(
            f"{len(urls):,} fetches"
            + (f", {http_server.DELAY_S * 1000:.0f} ms each" if ideal_s else "")
            + f", with a pool of {limits[1]:,} to {limits[0]:,} greenlets"
        )
        watch = BurstWatch(worker, greenlet, probe, display, interrupt)
        figures = watch.burst(sender, urls, ideal_s, limits)
    if figures is None:
        display.say(f"stopped: {worker.state.succeeded:,} of {len(urls):,} fetched")
        return _INTERRUPTED
    display.report(figures)
    return 0 if figures.succeeded == figures.total else 1


class DemoInterrupt:
    """The handler of Ctrl-C: ends the demo, the second time without waiting for running tasks."""

    def __init__(self) -> None:
        """Create an interrupt that has not occurred yet."""
        self.asked = Event()
        self.again: Callable[[], object] | None = None

    def __call__(self) -> None:
        """Handle Ctrl-C."""
        if self.asked.is_set() and self.again is not None:
            self.again()
        self.asked.set()


class BurstWatch:
    """Starts the burst and watches it through the worker's counters and a separate connection."""

    def __init__(
        self,
        worker: Worker,
        greenlet: Greenlet,
        probe: Client,
        display: DemoDisplay,
        interrupt: DemoInterrupt,
    ) -> None:
        """Watch `worker`, which runs in `greenlet`; commands sent by `probe` are not counted."""
        self._worker = worker
        self._greenlet = greenlet
        self._probe = probe
        self._broker = Broker(probe, worker.app.transport.keys)
        self._display = display
        self._interrupt = interrupt
        self._began_s = 0.0
        self._samples: list[DemoSample] = []
        self._peak = 0
        self._peak_at_s = 0.0

    def burst(
        self,
        sender: subprocess.Popen[str],
        urls: Sequence[str],
        ideal_s: float | None,
        limits: tuple[int, int],
    ) -> Figures | None:
        """Fetch all URLs, and return the measurements, or None if interrupted."""
        before = self._traffic()
        cpu_s = time.process_time()
        self._began_s = time.monotonic()
        with Sending(sender, urls) as sending:
            if not self._until(lambda: sending.ended and self._all_done(len(urls))):
                return None
        seconds = time.monotonic() - self._began_s
        cpu_s = time.process_time() - cpu_s
        after = self._traffic()
        connections = self._connections()
        reading = spawn(partial(_read, self._worker.app, sending.task_ids), name="demo results")
        until_s = time.monotonic() + _AFTER_S
        if not self._until(lambda: reading.dead and time.monotonic() > until_s):
            reading.kill()
            return None
        succeeded, reasons, response_s = reading.get()
        return Figures(
            total=len(urls),
            succeeded=succeeded,
            reasons=reasons,
            seconds=seconds,
            sent_s=sending.sent_s,
            ideal_s=ideal_s,
            response_s=response_s,
            least=limits[1],
            most=limits[0],
            peak=self._peak,
            peak_at_s=self._peak_at_s,
            commands=after[0] - before[0],
            reads=after[1] - before[1],
            connections=connections,
            cpu_s=cpu_s,
            samples=self._samples,
        )

    def _until(self, reached: Callable[[], bool]) -> bool:
        """Take and show samples until `reached`; return False if interrupted first."""
        while not self._interrupt.asked.is_set():
            sample = self._sample()
            if reached():
                self._display.show(sample, last=True)
                return True
            self._display.show(sample)
            if self._greenlet.dead:
                raise GreenqError("the demo's worker ended too early")
            self._interrupt.asked.wait(_SAMPLE_S)
        if running := self._worker.pool.running:
            self._display.say(
                f"waiting for {running:,} running fetches; Ctrl-C again ends them now"
            )
        return False

    def _all_done(self, total: int) -> bool:
        state = self._worker.state
        return state.succeeded + state.failed >= total and not len(self._worker.parts.outbox)

    def _sample(self) -> DemoSample:
        worker = self._worker
        depth = self._broker.depth(worker.parts.queues.names)
        at_s = time.monotonic() - self._began_s
        if worker.pool.peak > self._peak:
            self._peak, self._peak_at_s = worker.pool.peak, at_s
        sample = DemoSample(
            at_s=at_s,
            succeeded=worker.state.succeeded,
            failed=worker.state.failed,
            running=worker.pool.running,
            size=worker.pool.size,
            depth=depth,
        )
        self._samples.append(sample)
        return sample

    def _traffic(self) -> tuple[int, int]:
        """Return how many commands and reads the server has counted, without the probe's."""
        own = self._probe.traffic.commands, self._probe.traffic.round_trips
        lines = self._probe.call("INFO", "stats").decode().splitlines()
        stats = dict(line.split(":", 1) for line in lines if ":" in line)
        return (
            int(stats["total_commands_processed"]) - own[0],
            int(stats["total_reads_processed"]) - own[1],
        )

    def _connections(self) -> int:
        """Count the worker's connections; those of the sender were closed when it exited."""
        clients = self._probe.call("CLIENT", "LIST").decode().splitlines()
        return sum("name=greenq" in client.split() for client in clients)


class Sending:
    """The running sender; it gets all URLs when this object is created."""

    def __init__(self, sender: subprocess.Popen[str], urls: Sequence[str]) -> None:
        """Give the URLs to the sender."""
        self._sender = sender
        self._greenlet = spawn(partial(sender.communicate, "\n".join(urls)), name="demo sender")
        self.sent_s = 0.0
        self.task_ids: list[str] = []

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the sender, and wait for the greenlet, which must end before the pipes are closed."""
        self._sender.kill()
        join_all([self._greenlet])

    @property
    def ended(self) -> bool:
        """Return whether everything has been sent.

        Raises:
            GreenqError: the sender failed.
        """
        if not self._greenlet.dead:
            return False
        if not self.task_ids:
            output, error = self._greenlet.get()
            if self._sender.returncode:
                raise GreenqError(f"the demo's sender failed:\n{error.strip()}")
            report = json.loads(output)
            self.sent_s, self.task_ids = report["sent_s"], report["task_ids"]
        return True


def _read(app: Greenq, task_ids: Sequence[str]) -> tuple[int, dict[str, int], float]:
    """Read all results; return the number of successes, the errors and the total response time."""
    succeeded, response_s = 0, 0.0
    value: Any
    reasons: Counter[str] = Counter()
    for task_id in task_ids:
        result = app.AsyncResult(task_id)
        state, value = result.state, result.result
        if state == SUCCESS:
            succeeded += 1
            response_s += value["seconds"]
        elif state in READY_STATES:
            reasons[f"{type(value).__name__}: {value}"] += 1
        else:
            reasons[f"no result is stored ({state})"] += 1
    shown = dict(reasons.most_common(_REASONS))
    rest = reasons.total() - sum(shown.values())
    return succeeded, shown | ({"other reasons": rest} if rest else {}), response_s


# --- what the demo starts and ends ----------------------------------------------------------------


@contextmanager
def _interruptible() -> Iterator[DemoInterrupt]:
    """Turn Ctrl-C and other signals into an event, which the demo checks where it can stop."""
    interrupt, signals = DemoInterrupt(), Signals(Hub())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signals.on(number, interrupt)
    try:
        yield interrupt
    finally:
        signals.close()


@contextmanager
def _folder() -> Iterator[Path]:
    """Create a temporary directory; remove it when the embedded server has ended."""
    folder = Path(tempfile.mkdtemp(prefix="greenq-demo-"))
    try:
        yield folder
    finally:
        _await_server_end(folder)
        shutil.rmtree(folder)


def _await_server_end(folder: Path) -> None:
    """Wait until the supervisor process has exited, which it does after its server."""
    lock = keeper.open_lock(folder / keeper.KEEPER_LOCK)
    deadline = time.monotonic() + _STOP_S
    try:
        while not keeper.try_lock(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise GreenqError(f"the demo's server has not stopped; its directory is {folder}")
            sleep(0.01)
    finally:
        os.close(lock)


@contextmanager
def _valkey(folder: Path) -> Iterator[str]:
    """Use the embedded server, as the app and the sender do; yield its socket's path."""
    server = EmbeddedServer(folder)
    try:
        yield server.acquire()
    finally:
        server.release()


@contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program; Ctrl-C does not reach it, but the end of its standard input does."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()


@contextmanager
def _web_server() -> Iterator[int]:
    """Run the local web server; yield its port."""
    # A configured web proxy must not be used for this local server.
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = f"{exempt},127.0.0.1" if exempt else "127.0.0.1"
    with _process("-I", "-S", str(http_server.__file__)) as process:
        yield int(_first_line(process, "web server"))


@contextmanager
def _sender(broker_url: str) -> Iterator[subprocess.Popen[str]]:
    """Start the sender, and wait until it has connected."""
    with _process("-m", "greenq.cli.demo.sender", broker_url) as process:
        _first_line(process, "sender")
        yield process


def _first_line(process: subprocess.Popen[str], name: str) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    if not select.select([process.stdout], [], [], _START_S)[0]:
        raise GreenqError(f"the demo's {name} did not start within {_START_S:g} s")
    line = process.stdout.readline()
    if not line:
        raise GreenqError(f"the demo's {name} did not start:\n{process.stderr.read().strip()}")
    return line.strip()


@contextmanager
def _working(
    app: Greenq, limits: tuple[int, int], interrupt: DemoInterrupt
) -> Iterator[tuple[Worker, Greenlet]]:
    """Run a worker in this process; when the block ends, the worker finishes running tasks.

    After a second Ctrl-C, the worker ends without finishing them.
    """
    worker = Worker(app, WorkerOptions(autoscale=limits))
    # `Worker.start` would suffice, but the demo must know when the worker has ended.
    greenlet = spawn(partial(worker.run, signals=False), name="worker")
    interrupt.again = worker.stop_cold
    try:
        yield worker, greenlet
    finally:
        worker.stop()
        join_all([greenlet])


def _allow_files(count: int) -> None:
    """Raise the limit on open files as far as allowed; the web server inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise GreenqError(
            f"this many fetches at once need {count:,} open files, but the limit is {hard:,}: "
            f"use a smaller --autoscale"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
