"""The handles of many tasks, which exist when somebody looks."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.errors import ResultsDisabled
from greenq.protocol.ids import TaskIds
from greenq.protocol.meta import ResultMeta
from greenq.result import AsyncResult, AsyncResults


class FakeBackend:
    def get(self, task_id: str) -> ResultMeta:
        return ResultMeta(task_id=task_id, status="SUCCESS", result=task_id.upper())


class FakeTransport:
    backend = FakeBackend()


class NoResults:
    @property
    def backend(self) -> FakeBackend:
        raise ResultsDisabled("results are disabled")


def handles(ids: Any) -> AsyncResults[str]:
    fake: Any = FakeTransport()
    return AsyncResults(ids, fake, "proj.add")


def test_handles_are_a_sequence() -> None:
    results = handles(["a", "b", "c"])

    assert len(results) == 3
    assert [result.id for result in results] == ["a", "b", "c"]
    assert (results[0].id, results[-1].id, results[1].name) == ("a", "c", "proj.add")
    assert [result.id for result in results[1:]] == ["b", "c"]
    assert [result.id for result in reversed(results)] == ["c", "b", "a"]
    assert results[1] in results
    assert (results[1].result, results[1].ready()) == ("B", True)
    with pytest.raises(IndexError):
        results[3]
    assert repr(results) == "<AsyncResults: 3 of proj.add>"


def test_handles_of_ten_million_tasks_are_made_when_asked_for() -> None:
    results = handles(TaskIds()[:10_000_000])

    assert len(results) == 10_000_000
    assert results[9_999_999] == results[-1] != results[0]
    assert next(iter(results[5_000_000:])).id == results[5_000_000].id


def test_handle_without_results_tells_so_when_it_is_asked() -> None:
    disabled: Any = NoResults()
    result: AsyncResult[Any] = AsyncResult("a", disabled)

    assert result.id == "a"
    with pytest.raises(ResultsDisabled):
        _ = result.state
