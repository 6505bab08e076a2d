"""Where a word of Celery's is used it means in a task what it means with Celery."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import celery.result
import pytest
from celery.app.task import Context as CelerysContext

from greenq import Greenq, Task, result
from greenq.errors import MaxRetriesExceededError, OperationalError, Reject, Retry
from greenq.protocol.envelope import unwrap
from greenq.protocol.message import TaskMessage
from greenq.running.eager import EagerContext
from greenq.sending.context import Context
from tests.unit.rig import Rig, wait_for


@pytest.fixture
def rig() -> Rig:
    return Rig(size=1)


def run(rig: Rig, name: str, *args: Any, **options: Any) -> dict[str, Any]:
    """Run a task and return its last state."""
    rig.give(name, "a", *args, **options)
    wait_for(lambda: not rig.pool.running and not rig.state.reserved)
    stored: dict[str, Any] = rig.outbox.stored()[-1]
    return stored


def next_run(rig: Rig) -> Any:
    """Return the one message that was sent in the place of another."""
    (move,) = rig.outbox.moves()
    return unwrap(move.text.encode())


# --- the code of a class --------------------------------------------------------------------------


def test_own_call_of_a_class_is_around_the_code(rig: Rig) -> None:
    inside: ContextVar[bool] = ContextVar("inside", default=False)

    @contextmanager
    def context() -> Iterator[None]:
        token = inside.set(True)
        yield
        inside.reset(token)

    class Base(Task[Any, Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with context():
                return super().__call__(*args, **kwargs)

    @rig.task("look", base=Base, bind=True)
    def look(self: Any, x: int) -> tuple[bool, int, str]:
        return inside.get(), x, self.request.id

    assert run(rig, "look", 3)["result"] == [True, 3, "a"]


def test_einfo_is_an_object_with_its_traceback(rig: Rig) -> None:
    told: list[Any] = []

    class Base(Task[Any, Any]):
        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            told.append((exc, einfo))

        def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            told.append((exc, einfo))

    @rig.task("fail", base=Base, bind=True, max_retries=1)
    def fail(self: Any) -> NoReturn:
        try:
            raise KeyError("no")
        except KeyError as exc:
            raise self.retry(exc=exc) from exc

    run(rig, "fail")
    run(rig, "fail", retries=1)
    assert len(told) == 2
    for exc, einfo in told:
        assert type(exc) is KeyError
        assert einfo.exception is exc
        assert einfo.type is KeyError
        assert str(einfo) == einfo.traceback
        assert einfo.traceback.startswith("Traceback (most recent call last)")
        assert 'raise KeyError("no")' in einfo.traceback


def test_after_return_is_called_at_the_end_only(rig: Rig) -> None:
    told: list[tuple[str, Any]] = []

    class Base(Task[Any, Any]):
        def after_return(self, status: str, retval: Any, *call: Any) -> None:
            told.append((status, call[-1] and call[-1].type))

    @rig.task("fail", base=Base, bind=True, autoretry_for=[ValueError], max_retries=1)
    def fail(self: Any, ok: bool = False) -> None:
        if not ok:
            raise ValueError

    run(rig, "fail")
    assert told == []
    run(rig, "fail", retries=1)
    run(rig, "fail", True)
    assert told == [("FAILURE", ValueError), ("SUCCESS", None)]


def test_app_knows_which_task_runs_here(rig: Rig) -> None:
    @rig.task("look")
    def look() -> list[Any]:
        app = rig.app
        return [app.current_task.name, app.current_worker_task is app.tasks["look"]]

    assert run(rig, "look")["result"] == ["look", True]
    assert rig.app.current_task is None


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_naive_times_are_utc(zone: str) -> None:
    rig = Rig(size=1, timezone=zone)
    ran: list[str] = []

    @rig.task("note")
    def note() -> None:
        ran.append("a")

    now = datetime.now(UTC).replace(tzinfo=None)
    rig.give("note", "later", eta=now + timedelta(seconds=100))
    ((eta, _request),) = rig.tasks.scheduled()
    assert eta.replace(tzinfo=None) == now + timedelta(seconds=100)
    rig.give("note", "in time", expires=now + timedelta(seconds=100))
    assert rig.outbox.states() == [("in time", "SUCCESS")]
    rig.give("note", "too late", expires=now - timedelta(seconds=100))
    assert rig.outbox.states()[1:] == [("too late", "REVOKED")]


def test_expiration_of_a_naive_time_agrees_with_it() -> None:
    rig = Rig(timezone="Asia/Tokyo")
    expires = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=100)
    raw = rig.delivery("note", "a", expires=expires).raw
    assert 90_000 < int(unwrap(raw).properties["expiration"]) <= 100_000


# --- retry ----------------------------------------------------------------------------------------


def test_retry_keeps_everything(rig: Rig) -> None:
    @rig.task("again", bind=True)
    def again(self: Any, x: int, y: int = 0) -> NoReturn:
        raise self.retry(countdown=5)

    options = {
        "headers": {"x_own": 1}, "shadow": "other", "time_limit": 50, "soft_time_limit": 40,
        "expires": 100, "root_id": "root", "parent_id": "parent", "group_id": "group",
        "group_index": 3, "priority": 4, "reply_to": "me", "correlation_id": "b",
        "ignore_result": False, "argsrepr": "(…)", "kwargsrepr": "{…}",
    }  # fmt: skip
    given = unwrap(rig.give("again", "a", 1, **options).raw)
    wait_for(lambda: not rig.pool.running)
    following = next_run(rig)
    differ = {name for name, value in given.headers.items() if following.headers.get(name) != value}
    assert differ == {"eta", "retries"}
    for name in ("priority", "reply_to", "correlation_id", "expiration"):
        assert following.properties[name] == given.properties[name]


def test_retry_takes_every_option(rig: Rig) -> None:
    options = {
        "headers": {"x_new": 2}, "shadow": "new", "time_limit": 5, "soft_time_limit": 4,
        "expires": 10, "priority": 7, "reply_to": "you", "correlation_id": "c",
        "ignore_result": True, "argsrepr": "A", "kwargsrepr": "K", "serializer": "yaml",
        "compression": "zlib", "routing_key": "mail", "delivery_mode": 1, "countdown": 1,
        "retry": True, "retry_policy": {},
    }  # fmt: skip

    @rig.task("again", bind=True)
    def again(self: Any) -> NoReturn:
        raise self.retry(**options)

    rig.give("again", "a", headers={"x_own": 1})
    wait_for(lambda: not rig.pool.running)
    (move,) = rig.outbox.moves()
    assert move.key.startswith("mail")
    sent = unwrap(move.text.encode())
    headers, properties = sent.headers, sent.properties
    assert (headers["x_own"], headers["x_new"]) == (1, 2)
    assert headers["shadow"] == "new"
    assert headers["timelimit"] == [5, 4]
    assert headers["ignore_result"] is True
    assert (headers["argsrepr"], headers["kwargsrepr"]) == ("A", "K")
    assert headers["compression"] == "application/x-gzip"
    assert "yaml" in sent.content_type
    left_s = datetime.fromisoformat(headers["expires"]) - datetime.now(UTC)
    assert 5 < left_s.total_seconds() <= 10
    assert 5_000 < int(properties["expiration"]) <= 10_000
    assert (properties["priority"], properties["delivery_mode"]) == (7, 1)
    assert (properties["reply_to"], properties["correlation_id"]) == ("you", "c")


@pytest.mark.parametrize(("options", "text"), [
    ({"countdwn": 3}, "did you mean countdown?"),
    ({"countdown": "3"}, "must be a number of seconds"),
    ({"task_id": "b"}, "the next run keeps this one's id"),
    ({"link": [{"task": "b"}]}, "the next run keeps this one's place in a workflow"),
])  # fmt: skip
def test_retry_says_what_is_wrong_where_it_is_called(
    rig: Rig, options: dict[str, Any], text: str
) -> None:
    said: list[str] = []

    @rig.task("again", bind=True)
    def again(self: Any) -> None:
        try:
            self.retry(**options)
        except TypeError as exc:
            said.append(str(exc))

    run(rig, "again")
    assert len(said) == 1
    assert text in said[0]


@pytest.mark.parametrize(("parent_id", "then"), [("parent", "parent"), (None, "a")])
def test_retry_keeps_its_parent(rig: Rig, parent_id: str | None, then: str) -> None:
    @rig.task("again", bind=True)
    def again(self: Any) -> NoReturn:
        raise self.retry()

    run(rig, "again", parent_id=parent_id)
    assert next_run(rig).headers["parent_id"] == then


@pytest.mark.parametrize("acks_late", [True, False])
@pytest.mark.parametrize(("how", "state"), [("return", "SUCCESS"), ("raise", "FAILURE")])
def test_retry_that_does_not_throw_goes_on(rig: Rig, how: str, state: str, acks_late: bool) -> None:
    @rig.task("again", bind=True, acks_late=acks_late)
    def again(self: Any) -> str:
        retry = self.retry(throw=False, countdown=5)
        assert isinstance(retry, Retry)
        if how == "raise":
            raise ValueError
        return "on"

    assert run(rig, "again")["status"] == state
    assert next_run(rig).headers["retries"] == 1


def test_retry_that_did_not_throw_may_be_raised(rig: Rig) -> None:
    @rig.task("again", bind=True)
    def again(self: Any) -> NoReturn:
        retry = self.retry(throw=False)
        raise retry

    assert run(rig, "again")["status"] == "RETRY"
    assert next_run(rig).headers["retries"] == 1


# --- the request ----------------------------------------------------------------------------------


def test_request_has_what_its_users_know(rig: Rig) -> None:
    seen: dict[str, Any] = {}

    @rig.task("look", bind=True)
    def look(self: Any) -> None:
        request = self.request
        for name in (
            "is_eager", "utc", "lang", "loglevel", "logfile", "x_own", "time_limit",
            "soft_time_limit", "called_directly", "correlation_id", "root_id",
        ):  # fmt: skip
            seen[name] = getattr(request, name)
        seen["properties"] = request.properties["priority"]
        seen["get"] = request.get("x_own"), request.get("nothing"), request.get("nothing", 3)
        seen["options"] = request.as_execution_options()
        with pytest.raises(AttributeError, match="no field and no header 'nothing'"):
            _ = request.nothing

    run(rig, "look", headers={"x_own": 1}, time_limit=50, priority=3)
    assert seen.pop("loglevel") > 0
    options = seen.pop("options")
    assert seen == {
        "is_eager": False, "utc": True, "lang": "py", "logfile": None, "x_own": 1,
        "time_limit": 50, "soft_time_limit": None, "called_directly": False,
        "correlation_id": "a", "root_id": "a", "properties": 3, "get": (1, None, 3),
    }  # fmt: skip
    assert options["task_id"] == "a"
    assert options["headers"] == {"x_own": 1}


def test_execution_options_have_the_place_in_a_workflow(rig: Rig) -> None:
    seen: dict[str, Any] = {}

    @rig.task("look", bind=True)
    def look(self: Any) -> None:
        seen.update(self.request.as_execution_options())

    def sig(name: str) -> dict[str, Any]:
        return {
            "task": name, "args": [], "kwargs": {}, "options": {}, "subtask_type": None,
            "immutable": False,
        }  # fmt: skip

    place = {
        "link": [sig("b")], "link_error": [sig("c")], "chain": [sig("d")],
        "replaced_task_nesting": 2, "stamped_headers": ["team"], "stamps": {"team": "mail"},
    }  # fmt: skip
    run(rig, "look", **place)
    assert {name: seen[name] for name in place} == place
    assert seen["chord"] is None


def test_request_of_a_direct_call_is_empty(rig: Rig) -> None:
    @rig.task("look", bind=True)
    def look(self: Any) -> Any:
        return self.request.x_own, self.request.properties, self.request.get("id", 3)

    assert look() == (None, None, None)


# --- tasks of classes -----------------------------------------------------------------------------


def test_class_with_a_run_is_a_task(rig: Rig) -> None:
    class Import(rig.app.Task):  # type: ignore[misc, name-defined]
        name = "import"
        max_retries = 7

        def run(self, x: int, y: int = 1) -> tuple[int, str]:
            return x + y, self.request.id

    task = rig.app.register_task(Import())
    assert rig.app.tasks["import"] is task
    assert task.app is rig.app
    assert run(rig, "import", 3)["result"] == [4, "a"]
    assert task.run(1, 2) == (3, None)
    # Twice the same class is no clash; the class will do.
    rig.app.register_task(Import, queue="mail")
    assert rig.app.tasks["import"].queue == "mail"


def test_class_without_a_name_has_that_of_its_module(rig: Rig) -> None:
    class Import(Task[Any, Any]):
        def run(self) -> None:
            pass

    assert rig.app.register_task(Import).name == f"{__name__}.Import"
    assert rig.app.gen_task_name("f", "m") == "m.f"


def test_class_without_code_is_refused(rig: Rig) -> None:
    class Nothing(Task[Any, Any]):
        pass

    with pytest.raises(TypeError, match=r"Nothing has no run\(\)"):
        rig.app.register_task(Nothing)


def test_constructor_of_a_class_is_called_without_arguments(rig: Rig) -> None:
    class Base(Task[Any, Any]):
        def __init__(self) -> None:
            self.users = {"george": "password"}

    @rig.task("look", base=Base, bind=True)
    def look(self: Any) -> int:
        return len(self.users)

    assert run(rig, "look")["result"] == 1


def test_app_has_a_class_of_its_tasks() -> None:
    class Own(Task[Any, Any]):
        abstract = True

    for app in (Greenq("a", task_cls=Own, set_as_current=False), Greenq("b", set_as_current=False)):
        app.Task = Own

        @app.task
        def add() -> None:
            pass

        assert isinstance(add, Own)
        assert app.Task is Own


def test_option_that_tasks_do_not_know_is_an_attribute(rig: Rig) -> None:
    @rig.task("own", tenant="acme", trail=True)
    def own() -> None:
        pass

    assert own.tenant == "acme"
    for wrong, text in (
        ({"acks_lat": True}, "did you mean acks_late?"),
        ({"delay": 3}, "attribute with that name"),
        ({"link": [1]}, "link each call instead"),
        ({"acks_on_failure": False}, "acks_on_failure_or_timeout instead"),
        ({"retry_on_worker_lost": True}, "reject_on_worker_lost instead"),
    ):
        with pytest.raises(TypeError, match=text):
            rig.task("wrong", **wrong)(own.function)


# --- what is told ---------------------------------------------------------------------------------


def test_rejection_is_told_beside_the_failure(rig: Rig) -> None:
    @rig.task("drop", acks_late=True)
    def drop() -> NoReturn:
        raise Reject("never")

    run(rig, "drop")
    assert rig.events.of("task-rejected") == {"uuid": "a", "requeue": False}
    assert "Reject" in rig.events.of("task-failed")["exception"]


@pytest.mark.parametrize("why", ["revoked", "expired"])
def test_task_that_does_not_run_is_stored_with_what_is_extended(why: str) -> None:
    rig = Rig(size=1, result_extended=True)

    @rig.task("add")
    def add(x: int) -> None:
        pass

    if why == "revoked":
        rig.give("add", "a", 1, countdown=100)
        rig.tasks.revoke(["a"])
    else:
        rig.give("add", "a", 1, expires=-1)
    (stored,) = rig.outbox.stored()
    assert stored["status"] == "REVOKED"
    assert (stored["name"], stored["args"], stored["kwargs"]) == ("add", [1], {})
    assert (stored["worker"], stored["retries"], stored["queue"]) == ("greenq@rig", 0, "celery")


def test_traceback_has_the_causes(rig: Rig) -> None:
    @rig.task("fail")
    def fail() -> NoReturn:
        try:
            raise KeyError("first")
        except KeyError as exc:
            raise ValueError("second") from exc

    trace = run(rig, "fail")["traceback"]
    assert "KeyError: 'first'" in trace
    assert "direct cause" in trace
    assert trace.endswith("ValueError: second\n")


def test_hooks_at_the_end_of_a_task(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, Any]] = []
    local = threading.local()

    class Base(Task[Any, Any]):
        def after_return(self, *call: Any) -> None:
            told.append(("after_return", None))

    @rig.task("work", base=Base)
    def work(kind: str) -> None:
        local.session = kind
        if kind == "fails":
            raise ValueError

    @rig.app.on_task_end
    def close() -> None:
        told.append(("end", (local.session, work.request.id, rig.pool.running)))

    @rig.app.on_task_end
    def broken() -> NoReturn:
        raise SystemExit

    assert rig.app.task_end_hooks == [close, broken]
    for kind in ("works", "fails"):
        run(rig, "work", kind)
    assert told == [
        ("after_return", None), ("end", ("works", "a", 1)),
        ("after_return", None), ("end", ("fails", "a", 1)),
    ]  # fmt: skip
    assert "failed at the end of task work[a]" in caplog.text


# Of Celery's own names: what changes a request in place, which nothing does here.
CHANGES = {"clear", "update"}


def test_request_has_every_field_of_celerys() -> None:
    fields = {name for name in dir(CelerysContext) if not name.startswith("_")} - CHANGES
    message = TaskMessage(task="a", id="b", group="g")
    for context in (Context(), Context(message), EagerContext(message, {}, stores=False)):
        assert {name for name in fields if not hasattr(context, name)} == set()
    assert Context(message).taskset == "g"


@pytest.mark.parametrize("name", ["AsyncResult", "ResultSet", "GroupResult", "EagerResult"])
def test_handles_have_what_celerys_have(name: str) -> None:
    ours, theirs = getattr(result, name), getattr(celery.result, name)
    # What an instance gets in its constructor, and the parts of a promise.
    others = {"id", "ignored", "parent", "results", "throw", "on_ready"}
    names = {each for each in dir(theirs) if not each.startswith("_")} - others
    assert {each for each in names if not hasattr(ours, each)} == set()


def test_task_has_the_exceptions_of_its_retries() -> None:
    assert Task.MaxRetriesExceededError is MaxRetriesExceededError
    assert Task.OperationalError is OperationalError
