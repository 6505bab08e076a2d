"""The greenq app of tests' workers, and a task that rejects its message once."""

from __future__ import annotations

from typing import Any

from greenq import Reject
from tests.apps.greenq_app import app


@app.task(name="shared.reject", bind=True, acks_late=True)
def reject(self: Any) -> str:
    if not self.request.delivery_info["redelivered"]:
        raise Reject("not yet", requeue=True)
    return "second delivery"
