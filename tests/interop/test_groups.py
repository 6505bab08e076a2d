"""Groups and trees of results: what one kind saves the other restores and joins."""

from __future__ import annotations

import pytest
from celery import group
from celery.result import AsyncResult as CelerysResult
from celery.result import GroupResult as CelerysGroup

from greenq import AsyncResult, GroupResult
from tests.interop.conftest import celery_client, greenq_client
from tests.servers import Server

pytestmark = [
    pytest.mark.interop,
    # Celery uses commands that redis-py calls deprecated, and leaves a connection open.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_group_saved_by_celery_is_restored_here(server: Server, compression: str | None) -> None:
    settings = {"result_compression": compression}
    with (
        celery_client(server.url, **settings) as theirs,
        greenq_client(server.url, **settings) as ours,
    ):
        parent = theirs.AsyncResult("first")
        inner = CelerysGroup("inner", [theirs.AsyncResult("c")], app=theirs)
        members = [CelerysResult("a", app=theirs, parent=parent), theirs.AsyncResult("b"), inner]
        CelerysGroup("outer", members, parent=parent, app=theirs).save()

        restored = ours.GroupResult.restore("outer")
        assert [result.id for result in restored] == ["a", "b", "inner"]
        assert (restored.parent.id, restored[0].parent.id) == ("first", "first")
        assert isinstance(restored[2], GroupResult)
        for task_id in "abc":
            theirs.backend.store_result(task_id, task_id.upper(), "SUCCESS")
        assert restored.get(timeout=10) == ["A", "B", ["C"]]
        restored.delete()
        assert theirs.GroupResult.restore("outer") is None
        del parent, inner, members


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_group_saved_here_is_restored_by_celery(server: Server, compression: str | None) -> None:
    settings = {"result_compression": compression}
    with (
        celery_client(server.url, **settings) as theirs,
        greenq_client(server.url, **settings) as ours,
    ):
        inner = GroupResult("inner", [ours.AsyncResult("c")])
        members = [AsyncResult("a", app=ours), AsyncResult("b", app=ours), inner]
        first = AsyncResult("first", app=ours)
        GroupResult("outer", members, first, app=ours).save()
        for task_id in "abc":
            ours.backend.store(task_id, "SUCCESS", task_id.upper())

        restored = theirs.GroupResult.restore("outer")
        assert restored.as_tuple() == GroupResult("outer", members, first).as_tuple()
        assert restored.join(timeout=10) == ["A", "B", ["C"]]
        assert restored.completed_count() == 3
        restored.delete()
        assert ours.GroupResult.restore("outer") is None


def test_children_stored_by_celery_are_followed(server: Server) -> None:
    with celery_client(server.url) as theirs, greenq_client(server.url) as ours:
        members = CelerysGroup("g", [theirs.AsyncResult("x")], app=theirs)
        request = type(
            "Request", (), {"children": [theirs.AsyncResult("one"), members], "group": None}
        )()
        theirs.backend.store_result("root", 0, "SUCCESS", request=request)
        for task_id in ("one", "x"):
            theirs.backend.store_result(task_id, task_id, "SUCCESS")
        found = [(str(node), value) for node, value in ours.AsyncResult("root").collect()]
        assert found == [("root", 0), ("one", "one"), ("g", ["x"]), ("x", "x")]
        del members, request


def test_group_that_celery_sends_is_joined_here(server: Server) -> None:
    with celery_client(server.url) as theirs, greenq_client(server.url) as ours:
        sent = group(theirs.signature("shared.add", (n, 1)) for n in range(3)).apply_async()
        sent.save()
        restored = ours.GroupResult.restore(sent.id)
        for number, result in enumerate(restored):
            ours.backend.store(result.id, "SUCCESS", number)
        assert restored.get(timeout=10) == [0, 1, 2]
        assert sent.get(timeout=10) == [0, 1, 2]
        del sent
