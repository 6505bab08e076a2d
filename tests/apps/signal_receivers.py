"""Receivers of all signals, and tasks that cause them; for Celery and greenq alike.

Each call becomes a line of the file that TEST_SIGNALS names.
"""

from __future__ import annotations

import json
import os
from types import ModuleType
from typing import Any

# Not sent by Celery's solo pool, or only here.
WORKER = (
    "import_modules", "celeryd_init", "worker_init", "after_setup_logger",
    "after_setup_task_logger", "celeryd_after_setup", "worker_process_init", "worker_ready",
    "heartbeat_sent", "worker_shutting_down", "worker_process_shutdown", "worker_shutdown",
)  # fmt: skip
TASK = (
    "before_task_publish", "after_task_publish", "task_received", "task_prerun", "task_postrun",
    "task_success", "task_retry", "task_failure", "task_revoked", "task_rejected", "task_unknown",
    "task_internal_error",
)  # fmt: skip
OF_APP = ("on_configure", "on_after_configure", "on_after_finalize")


def named(sender: Any) -> Any:
    """Describe a sender without what differs between the two."""
    if sender is None:
        return None
    if isinstance(sender, str):
        return "node" if "@" in sender else sender
    kind = {"Celery": "app", "Greenq": "app"}.get(type(sender).__name__)
    if kind is None and hasattr(sender, "apply_async"):
        kind = f"task {sender.name}"
    return kind or type(sender).__name__


def id_of(sender: Any, kwargs: dict[str, Any]) -> Any:
    """Return the id of the task that a signal is about, None if it is about none."""
    if "headers" in kwargs:
        return kwargs["headers"]["id"]
    if getattr(kwargs.get("request"), "id", None):
        return kwargs["request"].id
    if "task_id" in kwargs or "id" in kwargs:
        return kwargs.get("task_id", kwargs.get("id"))
    return sender.request.id if hasattr(sender, "apply_async") else None


def connect(signals: ModuleType, app: Any) -> None:
    """Connect a receiver to each signal."""

    def note(name: str) -> Any:
        def receive(signal: Any, sender: Any, **kwargs: Any) -> None:
            line = {
                "signal": name,
                "sender": named(sender),
                "keys": sorted(kwargs),
                "about": id_of(sender, kwargs),
                "texts": {key: value for key, value in kwargs.items() if key in ("sig", "how")},
            }
            with open(os.environ["TEST_SIGNALS"], "a") as file:
                file.write(json.dumps(line) + "\n")

        return receive

    for name in WORKER + TASK:
        getattr(signals, name).connect(note(name), weak=False)
    for name in OF_APP:
        getattr(app, name).connect(note(name), weak=False)


def register(app: Any) -> None:
    """Define the tasks."""

    @app.task(name="told.well")
    def well() -> str:
        return "well"

    @app.task(name="told.badly")
    def badly() -> None:
        raise ValueError("badly")

    @app.task(name="told.twice", bind=True, default_retry_delay=0)
    def twice(self: Any) -> str:
        if not self.request.retries:
            raise self.retry(exc=ValueError("once more"))
        return "twice"

    @app.task(name="told.sends")
    def sends(task_id: str) -> None:
        app.send_task("told.well", task_id=task_id)
