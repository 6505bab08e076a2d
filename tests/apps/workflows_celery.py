"""The Celery app of tests' workers; broker and settings come from the environment."""

from __future__ import annotations

import json
import os

from celery import Celery

from tests.apps import workflow_tasks

URL = os.environ["TEST_BROKER"]
app = Celery("tests", broker=URL, backend=URL)
app.conf.update(broker_connection_retry_on_startup=True, **json.loads(os.environ["TEST_SETTINGS"]))
workflow_tasks.register(app)
