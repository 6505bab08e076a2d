"""Bodies as Celery's programs publish them: events and control requests."""

from __future__ import annotations

import base64
import json
from typing import Any


def published(body: object, /, **changes: Any) -> bytes:
    """Return a body as it is published, with other fields of the envelope than usual."""
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"clock": 1, "expires": 0},
            "properties": {"body_encoding": "base64", "delivery_tag": "t"},
        }
        | changes
    ).encode()
