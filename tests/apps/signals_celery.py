"""The app of a celery worker that notes the signals it sends."""

from __future__ import annotations

import os

from celery import Celery, signals

from tests.apps import signal_receivers

URL = os.environ["TEST_BROKER"]
app = Celery("tests", broker=URL, backend=URL)
app.conf.broker_connection_retry_on_startup = True
signal_receivers.connect(signals, app)
signal_receivers.register(app)
