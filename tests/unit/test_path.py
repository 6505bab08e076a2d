"""The path of a task through greenq's own files: short enough to be followed by a reader.

Counted are Python functions of the package that are called or resumed: in how many files they lie,
and how often one lies in another file than the one before.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from types import FrameType
from typing import NamedTuple

import greenq
from greenq import Greenq
from tests.servers import Server, spawn_greenq
from tests.support import wait_until

PACKAGE = os.path.dirname(greenq.__file__) + os.sep
# Not called for a signal without receivers.
SIGNALS = {"signals.py", "sending/announced.py", "running/task_signals.py"}
# Beside a message there may be a renewal or an event, now and then.
ROUNDS = 9


class Walk(NamedTuple):
    """How many files a reader opens, and how often they go from one to another."""

    files: int
    changes: int


def walk_of(walked: list[str]) -> Walk:
    return Walk(len(set(walked)), sum(one != other for one, other in pairwise(walked)))


def test_sending_is_a_straight_walk(server: Server) -> None:
    app = Greenq("sender", broker=server.url, set_as_current=False)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    walked: list[str] = []

    def note(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            walked.append(frame.f_code.co_filename.removeprefix(PACKAGE))

    add.delay(2, 2)
    sys.setprofile(note)
    try:
        add.delay(2, 2)
    finally:
        sys.setprofile(None)
    app.close()
    found = walk_of(walked)
    assert SIGNALS.isdisjoint(walked), walked
    assert found.files <= 10, walked
    assert found.changes <= 12, walked


def test_work_is_a_straight_walk(server: Server, tmp_path: Path) -> None:
    app = Greenq("sender", broker=server.url, set_as_current=False)
    rounds = []
    worker = spawn_greenq(server.url, tmp_path / "log", app="path_app", loglevel="WARNING")
    try:
        for _ in range(ROUNDS):
            # Idle: it waits for the next message.
            wait_until(lambda: server.client.info("clients")["blocked_clients"] == 1, 30)
            rounds.append(app.send_task("path.walked").get(timeout=20))
            server.wait_settled()
    finally:
        worker.stop()
        app.close()
    assert SIGNALS.isdisjoint(file for walked in rounds[1:] for file in walked)
    walks = [walk_of(walked) for walked in rounds[1:]]
    assert median_low(walk.files for walk in walks) <= 16, rounds[-1]
    assert median_low(walk.changes for walk in walks) <= 40, rounds[-1]
