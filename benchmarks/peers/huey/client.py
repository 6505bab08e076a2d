"""huey's sending side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huey.constants import EmptyData

from benchmarks import client
from benchmarks.peers.huey import tasks

if TYPE_CHECKING:
    from collections.abc import Sequence


def send(task: str, args: Sequence[float], count: int) -> list[str]:
    """Queue calls and return their ids."""
    function = getattr(tasks, task)
    return [function(*args).id for _ in range(count)]


def values(ids: Sequence[str]) -> list[object]:
    """Return the results of calls."""
    storage = tasks.huey.storage
    stored = [storage.peek_data(each) for each in ids]
    if EmptyData in stored:
        raise LookupError(f"{stored.count(EmptyData)} of {len(ids)} results are missing")
    return [tasks.huey.serializer.deserialize(each) for each in stored]


if __name__ == "__main__":
    client.main(send, values)
