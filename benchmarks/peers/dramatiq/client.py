"""dramatiq's sending side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import client
from benchmarks.peers.dramatiq import tasks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def send(task: str, args: Sequence[float], count: int) -> list[str]:
    """Queue calls and return their messages."""
    actor = getattr(tasks, task)
    return [tasks.broker.enqueue(actor.message(*args)).encode().decode() for _ in range(count)]


def values(messages: Iterable[str]) -> list[object]:
    """Return the results of calls."""
    decode = tasks.dramatiq.Message.decode
    return [tasks.results.get_result(decode(message.encode())) for message in messages]


if __name__ == "__main__":
    client.main(send, values)
