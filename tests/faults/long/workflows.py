"""Chained chords while workers and producers are killed and the server restarts."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from tests.faults.long.lab import Lab
from tests.faults.long.producer import end_of, numbers
from tests.servers import ROOT, Process


class Size(NamedTuple):
    """How many workflows, and what happens to them meanwhile."""

    workflows: int
    worker_kills: int
    producer_kills: int
    restarts: int


LONG = Size(1000, 50, 10, 2)
QUICK = Size(40, 10, 3, 1)
_SETTLE_S = 60.0


class Producers:
    """One producer after another; each begins behind what the one before had begun to send."""

    def __init__(self, lab: Lab, workflows: int, pause_s: float) -> None:
        self._lab = lab
        self._workflows = workflows
        self._pause_s = pause_s
        self._record = lab.ledger.path.with_suffix(".sent")
        self._record.touch()
        self._process: Process | None = None

    def marked(self, word: str) -> set[int]:
        """Return the workflows that are marked with a word in the record."""
        lines = (line.split() for line in self._record.read_text("ascii").splitlines())
        return {int(fields[1]) for fields in lines if fields[0] == word}

    def start(self) -> None:
        """Start the next producer."""
        first = max(self.marked("sending"), default=-1) + 1
        url, folder = self._lab.server.url, self._record.parent
        arguments = map(str, (url, first, self._workflows, self._record, self._pause_s))
        self._process = Process(
            [sys.executable, "-m", "tests.faults.long.producer", *arguments],
            folder / f"producer-{first}.log",
            os.environ | {"PYTHONPATH": str(ROOT)},
            ROOT,
        )

    def kill(self) -> None:
        """End the producer as a crash would."""
        if self._process is not None:
            self._process.kill()

    @property
    def at_work(self) -> bool:
        """Whether there is something left to send."""
        return self._process is not None and self._process.alive

    def replace(self) -> None:
        """Kill the producer and start the next one."""
        self.kill()
        self.start()


def workflows(lab: Lab, size: Size | None = None) -> None:
    """Run workflows of ten chained chords of ten; two workers, each killed again and again."""
    size = size or (QUICK if lab.quick else LONG)
    names = itertools.cycle(["one", "two"])
    workers = {name: lab.worker(name, "-c", "100") for name in ("one", "two")}
    producers = Producers(lab, size.workflows, pause_s=0.02)
    begun: dict[str, int] = defaultdict(int)

    def kill_worker() -> None:
        name = next(names)
        lab.kill(workers[name])
        workers[name] = lab.spawn(name, "-c", "100")
        lab.wait(lambda: "Connected to " in workers[name].text, 60, f"{name} does not come back")

    def restart_server() -> None:
        lab.server.stop()
        time.sleep(0.5)
        lab.server.start()

    faults: dict[str, tuple[int, Callable[[], None]]] = {
        "worker": (size.worker_kills, kill_worker),
        "producer": (size.producer_kills, producers.replace),
        "server": (size.restarts, restart_server),
    }
    planned = [name for name, (count, _cause) in faults.items() for _ in range(count)]
    lab.choose.shuffle(planned)
    with ExitStack() as stack:
        stack.callback(producers.kill)
        producers.start()
        for at, name in enumerate(planned):
            lab.say(f"fault {at + 1} of {len(planned)}: {name}")
            time.sleep(lab.choose.uniform(0.2, 1.5))
            begun[name] += lab.started() < size.workflows * len(numbers(0))
            faults[name][1]()
        lab.wait(lambda: not producers.at_work, 300, "the producer does not end")
        _judge(lab, producers, size)
    lab.figures |= {f"{name} faults under load": count for name, count in begun.items()}


def _judge(lab: Lab, producers: Producers, size: Size) -> None:
    sent = producers.marked("sent")
    lab.ledger.sent.update({number: 0.0 for each in sent for number in numbers(each)})
    began_s = time.monotonic()
    lab.recoveries_s.append(_progressing(lab) - began_s)
    _expect_each_once(lab)
    doubtful = set(range(size.workflows)) - sent
    parts = [len(lab.ledger.executed.intersection(numbers(each))) for each in doubtful]
    partial = [count for count in parts if count not in (0, len(numbers(0)))]
    lab.expect(not partial, f"{len(partial)} workflows of killed producers ran in part: {partial}")
    lab.figures |= {
        "workflows": len(sent), "of killed producers": len(doubtful),
        "of these run": sum(1 for count in parts if count),
    }  # fmt: skip
    _expect_results(lab, sent)


def _progressing(lab: Lab) -> float:
    """Wait until all has run, as long as something still ends; return when nothing did any more."""
    while True:
        lab.ledger.read()
        before = len(lab.ledger.executed)
        settled_s = lab.settle(_SETTLE_S)
        if not (lab.ledger.lost or lab.left()) or len(lab.ledger.executed) == before:
            return settled_s


def _expect_each_once(lab: Lab) -> None:
    """One delivery tag is one message sent: a successor that is sent again has another."""
    # A killed worker may have had the ends of a second unwritten: so much follows from each.
    lab.ledger.read()
    killed = {cut.pid for cut in lab.ledger.cuts}
    doubles = sorted(
        number
        for number in lab.ledger.twice
        for run in sorted(lab.ledger.runs[number], key=lambda run: run.start_s)[:-1]
        if run.pid not in killed
    )
    lab.expect(not doubles, f"{len(doubles)} ran again though no worker died: {doubles[:5]}")
    tags: dict[str, set[str]] = defaultdict(set)
    wrong = set()
    for line in lab.ledger.path.with_name("ledger.tags").read_text("ascii").splitlines():
        number, tag, verdict = line.split()
        tags[number].add(tag)
        if verdict != "right":
            wrong.add(number)
    again = sorted(number for number, seen in tags.items() if len(seen) > 1)
    lab.expect(not again, f"{len(again)} were sent more than once: {again[:5]}")
    lab.expect(not wrong, f"{len(wrong)} got another value than that before: {sorted(wrong)[:5]}")


def _expect_results(lab: Lab, sent: set[int]) -> None:
    client = lab.server.client
    missing = [each for each in sent if not _succeeded(lab, each)]
    lab.expect(not missing, f"{len(missing)} have no result: {missing[:5]}")
    held = sum(1 for key in client.scan_iter("*") if key.endswith((b".j", b".t", b".d")))
    lab.expect(not held, f"{held} keys of chords that have ended are left")


def _succeeded(lab: Lab, workflow: int) -> bool:
    stored = lab.server.client.get(f"celery-task-meta-{end_of(workflow)}")
    return stored is not None and b'"SUCCESS"' in stored
