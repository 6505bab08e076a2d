"""The handles of many tasks, which exist when somebody looks."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from greenq import Greenq
from greenq.errors import ResultsDisabled
from greenq.protocol.ids import TaskIds
from greenq.protocol.meta import ResultMeta
from greenq.result import AsyncResult, AsyncResults, allow_join_result


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


class Documents:
    """A transport whose backend reads these documents."""

    def __init__(self, **metas: ResultMeta) -> None:
        self.backend: Any = self
        self._metas = metas
        self.waits = 0

    def get(self, task_id: str) -> ResultMeta:
        return self._metas[task_id]

    def wait(self, task_id: str, **_how: Any) -> ResultMeta:
        self.waits += 1
        return self._metas[task_id]


def read(**changes: Any) -> tuple[AsyncResult[Any], Documents]:
    meta = {"task_id": "a", "status": "SUCCESS", "result": 3} | changes
    documents: Any = Documents(a=ResultMeta(**meta))
    return AsyncResult("a", documents), documents


def test_result_has_what_its_users_know() -> None:
    extra = {"args": [1], "kwargs": {"x": 2}, "worker": "w@h", "retries": 3, "queue": "mail"}
    result, _ = read(children=[[["b", None], None], [["c", ["a", None]], None], "odd"], extra=extra)
    assert [child.id for child in result.children] == ["b", "c", "odd"]
    assert [child.parent and child.parent.id for child in result.children] == [None, "a", None]
    assert result.children[1].root.id == "a"
    assert (result.args, result.kwargs, result.worker) == ([1], {"x": 2}, "w@h")
    assert (result.retries, result.queue) == (3, "mail")
    assert result.as_tuple() == (("a", None), None)
    assert result.children[1].as_tuple() == (("c", (("a", None), None)), None)
    assert result.maybe_throw() == 3


def test_failure_is_thrown_if_there_is_one() -> None:
    result, _ = read(status="FAILURE", result=ValueError("no"), traceback="t")
    with pytest.raises(ValueError, match="no"):
        result.maybe_throw()
    assert isinstance(result.maybe_throw(propagate=False), ValueError)


def test_get_takes_celerys_words() -> None:
    result, _ = read()
    told: list[tuple[str, Any]] = []
    with allow_join_result():
        value = result.get(
            disable_sync_subtasks=False, no_ack=False, follow_parents=False,
            callback=lambda *each: told.append(each),
        )  # fmt: skip
    assert value == 3
    assert told == [("a", 3)]


def test_result_that_its_sender_ignores_is_not_waited_for() -> None:
    documents: Any = Documents()
    assert AsyncResult("a", documents, ignored=True).get() is None
    assert documents.waits == 0


def test_result_finds_its_app() -> None:
    app = Greenq("results", broker="redis://127.0.0.1:1/0")
    result: AsyncResult[Any] = AsyncResult("a")
    assert result.app is app
    assert result.backend is app.transport.backend
    other = Greenq("others", broker="redis://127.0.0.1:1/0", set_as_current=False)
    assert AsyncResult("a", app=other).backend is other.transport.backend
    again = pickle.loads(pickle.dumps(AsyncResult("a", app=other, ignored=True)))
    assert (again.id, again.ignored, again.app) == ("a", True, app)


@pytest.mark.parametrize("timeout", [None, 3.0])
def test_revoke_waits_for_the_workers_if_that_is_said(timeout: float | None) -> None:
    asked: list[Any] = []

    def revoke(*ids: str, **how: Any) -> None:
        asked.append((ids, how))

    app = SimpleNamespace(control=SimpleNamespace(revoke=revoke))
    AsyncResult("a", app=app).revoke(wait=True, terminate=True, timeout=timeout)
    how = {"terminate": True, "signal": "SIGTERM", "reply": True, "timeout": timeout or 1.0}
    assert asked == [(("a",), how)]
