"""The greenq app of tests' workers; broker and settings come from the environment."""

from __future__ import annotations

import json
import os

from greenq import Greenq
from tests.apps import workflow_tasks

app = Greenq("tests", broker=os.environ["TEST_BROKER"], **json.loads(os.environ["TEST_SETTINGS"]))
workflow_tasks.register(app)
