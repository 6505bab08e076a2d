"""Tasks that all call one service, which answers twenty at once as fast as it can, and no more."""

from __future__ import annotations

import json
import os
import time

from greenq import Greenq

app = Greenq(
    "downstream", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"])
)

SERVES = 20
WORK_S = 0.1
STEP_S = 0.02

_running: set[object] = set()


@app.task(name="downstream.call", ignore_result=True)
def call() -> None:
    """Take longer the more calls run at once."""
    me = object()
    _running.add(me)
    left_s = WORK_S
    while left_s > 0:
        time.sleep(STEP_S)
        left_s -= STEP_S * min(1.0, SERVES / len(_running))
    _running.discard(me)
