"""Tasks that run where they are sent, without a server."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from greenq import Greenq, Ignore, Reject, Task, signals
from greenq.errors import EncodeError, MaxRetriesExceededError, Retry, TaskRevokedError
from greenq.result import AsyncResult, EagerResult, ResultSet, allow_join_result


def make_app(**settings: Any) -> Greenq:
    """Make an app whose server does not exist."""
    return Greenq("eager", broker="redis://127.0.0.1:1/0", **settings)


@pytest.fixture
def app() -> Greenq:
    return make_app()


def test_apply_runs_the_task_here(app: Greenq) -> None:
    seen: dict[str, Any] = {}

    @app.task(bind=True, time_limit=7)
    def add(self: Any, x: int, y: int = 0) -> int:
        request = self.request
        seen.update(
            is_eager=request.is_eager, direct=request.called_directly, id=request.id,
            root_id=request.root_id, parent_id=request.parent_id, args=request.args,
            kwargs=request.kwargs, retries=request.retries, headers=request.headers,
            info=request.delivery_info, limit=request.time_limit, tenant=request.get("tenant"),
            group=request.group, hostname=bool(request.hostname), task=app.current_task,
        )  # fmt: skip
        return x + y

    result = add.apply((2,), {"y": 3}, task_id="an-id", headers={"tenant": 7}, priority=3)

    assert isinstance(result, EagerResult)
    assert (result.get(), result.id, result.state, result.name) == (5, "an-id", "SUCCESS", add.name)
    assert seen == {
        "is_eager": True, "direct": False, "id": "an-id", "root_id": "an-id", "parent_id": None,
        "args": [2], "kwargs": {"y": 3}, "retries": 0, "headers": {"tenant": 7},
        "info": {"is_eager": True, "exchange": None, "routing_key": None, "priority": 3},
        "limit": 7, "tenant": 7, "group": None, "hostname": True, "task": add,
    }  # fmt: skip
    assert app.current_task is None
    assert add.request.called_directly


def test_failure_is_held_or_raised(app: Greenq) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("no")

    result = fail.apply()
    assert (result.state, result.failed(), result.ready()) == ("FAILURE", True, True)
    assert "ValueError: no" in str(result.traceback)
    assert isinstance(result.get(propagate=False), ValueError)
    with pytest.raises(ValueError, match="no") as caught:
        result.get()
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match="no"):
        fail.apply(throw=True)
    app.conf.task_eager_propagates = True
    with pytest.raises(ValueError, match="no"):
        fail.apply()
    assert fail.apply(throw=False).failed()


def test_what_ends_more_than_a_task_goes_on(app: Greenq) -> None:
    @app.task
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.apply()


def test_retries_follow_at_once(app: Greenq) -> None:
    runs: list[tuple[int, int, str]] = []

    @app.task(bind=True, max_retries=3, default_retry_delay=3600)
    def stubborn(self: Any, n: int) -> int:
        runs.append((n, self.request.retries, self.request.id))
        if self.request.retries < 2:
            raise self.retry(args=(n + 1,), exc=ValueError("again"))
        return n

    result = stubborn.apply((1,), task_id="a")
    assert (result.get(), result.state) == (3, "SUCCESS")
    assert runs == [(1, 0, "a"), (2, 1, "a"), (3, 2, "a")]

    @app.task(bind=True, max_retries=2)
    def hopeless(self: Any) -> None:
        self.retry()

    with pytest.raises(MaxRetriesExceededError):
        hopeless.apply(throw=True)
    # As in Celery: no further retries than those that are left.
    assert stubborn.apply((1,), retries=2).get() == 1


def test_retry_that_is_not_raised_follows_as_well(app: Greenq) -> None:
    runs: list[int] = []

    @app.task(bind=True)
    def quiet(self: Any) -> str:
        runs.append(self.request.retries)
        if not runs[1:]:
            self.retry(throw=False)
            return "first"
        return "second"

    assert quiet.apply().get() == "second"
    assert runs == [0, 1]


def test_autoretry_and_plain_retry(app: Greenq) -> None:
    runs: list[int] = []

    @app.task(autoretry_for=(ValueError,), max_retries=2)
    def flaky() -> None:
        runs.append(1)
        raise ValueError("no")

    assert isinstance(flaky.apply().result, ValueError)
    assert len(runs) == 3

    @app.task
    def bare() -> None:
        raise Retry("later")

    result = bare.apply()
    assert (result.state, result.get()) == ("RETRY", None)


@pytest.mark.parametrize(
    ("error", "state"),
    [(Ignore(), "IGNORED"), (Reject("no", requeue=True), "REJECTED"), (Reject("no"), "FAILURE")],
)
def test_ignored_and_rejected(app: Greenq, error: Exception, state: str) -> None:
    @app.task
    def steer() -> None:
        raise error

    result = steer.apply()
    assert result.state == state
    assert result.get(propagate=False) is (error if state == "FAILURE" else None)


def test_hooks_are_called(app: Greenq) -> None:
    called: list[Any] = []

    class Hooked(Task):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            called.append(("before", task_id, args, kwargs))

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            called.append(("success", retval, task_id, args, kwargs))

        def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            called.append(("retry", str(exc), type(einfo).__name__))

        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            called.append(("failure", str(exc), "ValueError" in str(einfo)))

        def after_return(self, status: str, retval: Any, *args: Any) -> None:
            called.append(("after", status, str(retval)))

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            called.append("call")
            return super().__call__(*args, **kwargs)

    @app.task(base=Hooked)
    def double(n: int) -> int:
        return 2 * n

    @app.task(base=Hooked, bind=True, max_retries=1)
    def fails(self: Any) -> None:
        raise self.retry(exc=ValueError("no"))

    double.apply((2,), task_id="a")
    assert called == [
        ("before", "a", [2], {}), "call", ("success", 4, "a", [2], {}), ("after", "SUCCESS", "4"),
    ]  # fmt: skip
    called.clear()
    fails.apply()
    assert [each[:2] for each in called if each != "call" and each[0] != "before"] == [
        ("retry", "no"), ("failure", "no"), ("after", "FAILURE"),
    ]  # fmt: skip


def test_always_eager_runs_instead_of_sending() -> None:
    app = make_app(task_always_eager=True)
    got: list[Any] = []

    @app.task(bind=True)
    def outer(self: Any, pair: Any) -> str:
        got.append(pair)
        return str(inner.delay(1).id)

    @app.task(bind=True)
    def inner(self: Any, n: int) -> int:
        got.append((self.request.parent_id, self.request.root_id))
        return n

    result = outer.delay((1, 2))
    assert isinstance(result, EagerResult)
    # It is read from JSON, as in a worker.
    assert got == [[1, 2], (result.id, result.id)]
    assert result.get() != result.id
    assert outer.apply_async(((),), task_id="b", queue="mail", countdown=9).id == "b"
    assert [each.get() for each in inner.delay_many([(1,), (2,)])] == [1, 2]
    with pytest.raises(TypeError, match="missing"):
        inner.delay()  # type: ignore[call-arg]
    with pytest.raises(EncodeError):
        inner.delay(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no send option 'quue'"):
        inner.apply_async((1,), quue="mail")  # type: ignore[call-arg]


def test_tasks_must_not_wait_in_eager_mode_either() -> None:
    app = make_app(task_always_eager=True, task_eager_propagates=True)

    @app.task
    def inner() -> int:
        return 1

    @app.task
    def waits() -> int:
        return inner.delay().get()

    @app.task
    def allowed() -> int:
        with allow_join_result():
            return inner.delay().get()

    with pytest.raises(RuntimeError, match="must not wait"):
        waits.delay()
    assert allowed.delay().get() == 1
    # By `apply` it may, since nobody's slot is taken.
    assert waits.run is not None
    app.conf.task_always_eager = False

    @app.task
    def applies() -> int:
        return inner.apply().get()

    assert applies.apply().get() == 1


def test_states_of_its_own_are_not_stored(app: Greenq) -> None:
    @app.task(bind=True)
    def progress(self: Any) -> int:
        self.update_state(state="PROGRESS", meta={"done": 1})
        return 1

    assert progress.apply().get() == 1


def test_send_task_says_that_it_sends(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(task_always_eager=True, task_publish_retry=False)
    with pytest.raises(Exception, match="127"):
        app.send_task("other.add")
    assert "task_always_eager has no effect on send_task: task other.add is sent" in caplog.text


def test_eager_result_is_complete() -> None:
    result: EagerResult[int] = EagerResult("a", 3, "SUCCESS", None, "proj.add")
    told: list[Any] = []
    assert result.get(timeout=1, callback=lambda *each: told.append(each)) == 3
    assert told == [("a", 3)]
    assert result.then(told.append) is result
    assert told[1:] == [result]
    again = pickle.loads(pickle.dumps(result))
    assert (again.id, again.get(), again.name, type(again)) == ("a", 3, "proj.add", EagerResult)
    assert (result.children, result.exists(), repr(result)) == ([], True, "<EagerResult: a>")
    results = ResultSet([result, result])
    assert results.get() == [3, 3]
    assert (results.ready(), results.successful(), results.completed_count()) == (True, True, 2)
    results.forget()
    assert result.as_tuple() == (("a", None), None)
    assert result == AsyncResult("a")
    result.revoke()
    assert (result.state, type(result.result)) == ("REVOKED", TaskRevokedError)
    with pytest.raises(TaskRevokedError):
        result.get()


def test_signals_are_sent_as_in_a_worker(app: Greenq) -> None:
    sent: list[tuple[str, str | None]] = []
    sent_by = {
        signals.task_prerun: "task_id", signals.task_success: "result",
        signals.task_retry: "reason", signals.task_failure: "task_id",
        signals.task_postrun: "state",
    }  # fmt: skip
    receivers = []
    for signal, shown in sent_by.items():

        def receive(signal: Any, sender: Any, shown: str = shown, **named: Any) -> None:
            sent.append((signal.name, str(named[shown])))

        signal.connect(receive, weak=False)
        receivers.append((signal, receive))

    @app.task(bind=True)
    def flaky(self: Any, how: str) -> int:
        if how == "fails":
            raise ValueError(how)
        if how == "retries" and not self.request.retries:
            raise self.retry(countdown=5)
        return 7

    try:
        flaky.apply(("works",), task_id="a")
        flaky.apply(("fails",), task_id="b")
        flaky.apply(("retries",), task_id="c")
    finally:
        for signal, receive in receivers:
            signal.disconnect(receive)

    success = [("task_success", "7"), ("task_postrun", "SUCCESS")]
    retry = ("task_retry", "Retry in 5s")
    assert sent == [
        ("task_prerun", "a"), *success,
        ("task_prerun", "b"), ("task_failure", "b"), ("task_postrun", "FAILURE"),
        ("task_prerun", "c"), retry, ("task_postrun", "RETRY"),
        ("task_prerun", "c"), *success,
    ]  # fmt: skip
