"""The app of a greenq worker that notes the signals it sends."""

from __future__ import annotations

import os

from greenq import Greenq, signals
from tests.apps import signal_receivers

app = Greenq("tests", broker=os.environ["TEST_BROKER"])
signal_receivers.connect(signals, app)
signal_receivers.register(app)
