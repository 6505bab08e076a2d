"""An app whose messages are kept instead of sent."""

from __future__ import annotations

import pytest

from greenq import Greenq
from tests.unit.canvas.outgoing import Outgoing


@pytest.fixture
def app() -> Greenq:
    """An app with two tasks."""
    made = Greenq("shop", broker="redis://127.0.0.1:1/0", set_as_current=True)

    @made.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @made.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    return made


@pytest.fixture
def outgoing(app: Greenq, monkeypatch: pytest.MonkeyPatch) -> Outgoing:
    """What the app sends."""
    return Outgoing(app, monkeypatch)
