"""An app whose worker notes which of greenq's files it walks through, call by call."""

from __future__ import annotations

import json
import os
import sys
from types import FrameType

import greenq
from greenq import Greenq

PACKAGE = os.path.dirname(greenq.__file__) + os.sep

app = Greenq("path", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))
walked: list[str] = []


def note(frame: FrameType, event: str, _arg: object) -> None:
    """Note the file of each Python function that is called or resumed."""
    if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
        walked.append(frame.f_code.co_filename.removeprefix(PACKAGE))


@app.task(name="path.walked")
def since_the_last_time() -> list[str]:
    """Return what was walked through since this ran last: the way of one message, all around."""
    files = walked.copy()
    walked.clear()
    return files


# This thread's greenlets, which are yet to be made, inherit it.
sys.setprofile(note)
