"""The messages of an app, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from greenq import Greenq
from greenq.errors import ConnectionLost
from greenq.protocol.envelope import unwrap
from greenq.protocol.message import TaskMessage, decode
from greenq.protocol.serialize import accepted


class Outgoing:
    """Takes the place of the server.

    Attributes:
        pushes: how many messages each push had.
        messages: all of them, in order.
        notes: what was written for chords, in order, and each push.
        breaks_at: the number of the push that fails, with `error`.
    """

    def __init__(self, app: Greenq, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pushes: list[int] = []
        self.messages: list[TaskMessage] = []
        self.notes: list[Any] = []
        self.breaks_at: int | None = None
        self.error: Exception = ConnectionLost("gone")
        monkeypatch.setattr(app.transport.broker, "publish", self._publish)
        monkeypatch.setattr(type(app.transport), "chords", self)

    def _publish(self, queue: str, texts: Sequence[str], *_: Any, **__: Any) -> None:
        if self.breaks_at == len(self.pushes):
            raise self.error
        self.pushes.append(len(texts))
        self.notes.append(f"push to {queue}")
        for text in texts:
            wrapped = unwrap(text.encode())
            message = decode(wrapped, accept=accepted(("json",)), max_body_bytes=1 << 30)
            self.messages.append(message)

    def seal(self, sizes: Any) -> None:
        self.notes.append(("seal", [size for _, size in sizes]))

    def open(self, group_id: str, body: str, body_id: str, size: int | None) -> str:
        self.notes.append(("open", body, size))
        return group_id

    def close(self, entry: str) -> None:
        self.notes.append("close")

    @property
    def calls(self) -> list[tuple[str, list[Any]]]:
        """Task and arguments of each message."""
        return [(each.task, list(each.args)) for each in self.messages]
