"""The setting `task_annotations`, on the worker and at the sender."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from greenq import Greenq, Task, errors
from greenq.protocol.envelope import unwrap
from tests.unit.rig import NOWHERE, Rig, keep_sent
from tests.unit.test_celery_words import run


@pytest.fixture
def app() -> Iterator[Greenq]:
    made = Greenq("proj", broker=NOWHERE, set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def sent(app: Greenq, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    return keep_sent(app, monkeypatch)


def add(x: int, y: int) -> int:
    return x + y


def named(app: Greenq, name: str, **options: Any) -> Task[Any, Any]:
    return app.task(name=name, **options)(add)


def test_attributes_of_one_task_and_of_all(app: Greenq) -> None:
    app.conf.task_annotations = {
        "*": {"rate_limit": "10/s"},
        "t.add": {"time_limit": 5, "rate_limit": "5/s", "mine": [1]},
    }
    annotated = named(app, "t.add", time_limit=1, max_retries=2)
    other = named(app, "t.other")

    assert set(app.tasks) >= {"t.add", "t.other"}
    assert (annotated.time_limit, annotated.max_retries, annotated.mine) == (5, 2, [1])  # type: ignore[attr-defined]
    assert (other.time_limit, other.rate_limit) == (None, "10/s")
    # As with Celery, what is for all comes last.
    assert annotated.rate_limit == "10/s"


def test_the_sender_sends_what_the_annotation_says(
    app: Greenq, sent: list[Mapping[str, Any]]
) -> None:
    app.conf.task_annotations = {
        "t.add": {"queue": "slow", "time_limit": 5, "typing": False, "ignore_result": True}
    }
    task = named(app, "t.add", queue="fast")

    assert task.delay(1).get() is None
    app.send_task("t.add", (1,), time_limit=7)

    own = {"queue": "slow", "time_limit": 5}
    assert sent == [own | {"ignore_result": True}, own | {"time_limit": 7}]


def test_settings_that_come_after_the_tasks_count(app: Greenq) -> None:
    task = named(app, "t.add")
    app.config_from_object({"task_annotations": {"t.add": {"priority": 3}}})
    assert task.app is app
    assert task.priority == 3
    # And so do they for tasks that come after the first use.
    app_of = app.register_task(type("Late", (app.Task,), {"name": "t.add2", "run": add}))
    app.conf.task_annotations = {"t.add3": {"priority": 4}}
    assert app_of.priority is None
    assert named(app, "t.add3").priority == 4


def test_functions_become_methods_of_this_task_alone(app: Greenq) -> None:
    def on_failure(self: Any, *call: Any) -> tuple[str, tuple[Any, ...]]:
        return self.name, call

    app.conf.task_annotations = {"t.add": {"on_failure": on_failure, "limit": staticmethod(len)}}
    task: Any = named(app, "t.add", base=app.Task)
    other: Any = named(app, "t.other", base=app.Task)
    assert task.app is app

    assert task.on_failure(1, 2) == ("t.add", (1, 2))
    assert task.limit("four") == 4
    assert isinstance(task, app.Task)
    assert other.on_failure(1, 2, 3, 4, 5) is None
    assert not hasattr(other, "limit")


def around(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *call: (self.name, original(self, *call))


def around_plain(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _self, *call: original(*call) * 10


def test_wrappers_are_put_around_methods_and_the_code(app: Greenq) -> None:
    class Base(app.Task):  # type: ignore[misc, name-defined]
        def on_success(self, *call: Any) -> str:
            return f"success of {call[0]}"

    app.conf.task_annotations = {
        "t.add": {"@on_success": around, "@run": around_plain},
        "t.bound": {"@run": around},
    }
    task = named(app, "t.add", base=Base)
    bound = app.task(name="t.bound", bind=True)(lambda self, x: (self.max_retries, x))
    assert task.app is bound.app is app

    assert task.on_success(1, "id", (), {}) == ("t.add", "success of 1")
    assert task(1, 2) == 30
    assert bound(7) == ("t.bound", (3, 7))


class Urgent:
    """An annotation that looks at the task."""

    def annotate(self, task: Task[Any, Any]) -> Mapping[str, Any] | None:
        assert task.app.tasks[task.name] is task
        return {"priority": 0} if task.name.startswith("alarm.") else None


class Slow:
    def annotate(self, task: Task[Any, Any]) -> None:
        return None

    def annotate_any(self) -> Mapping[str, Any]:
        return {"rate_limit": "1/s"}


@pytest.mark.parametrize("how", [Urgent(), Urgent, "annotations_of_a_test.Urgent"])
def test_objects_say_which_tasks_they_mean(
    app: Greenq, how: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "annotations_of_a_test", sys.modules[__name__])
    later = {"alarm.fire": {"priority": 9, "queue": "q"}, "other": {"queue": "q"}}
    app.conf.task_annotations = [how, later, Slow()]
    named(app, "alarm.fire")
    named(app, "other")

    found = {name: (t.priority, t.queue, t.rate_limit) for name, t in app.tasks.items()}
    # The first that has something for a task counts, and nothing is mixed.
    assert found["alarm.fire"] == (0, None, "1/s")
    assert found["other"] == (None, "q", "1/s")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"t.add": {"time_limit": "5"}}, "task t.add: time_limit = '5': must be"),
        ({"*": {"rate_limit": "often"}}, "rate limit 'often'"),
        ({"t.add": {"rate_limt": "1/s"}}, "no attribute 'rate_limt'; did you mean rate_limit?"),
        ({"t.add": {"on_failur": print}}, "no attribute 'on_failur'; did you mean on_failure?"),
        ({"t.add": {"@on_sucess": print}}, "no attribute 'on_sucess'; did you mean on_success?"),
        ("no_such_module_at_all.Urgent", "No module named 'no_such_module_at_all'"),
    ],
)
def test_what_is_wrong_is_refused_each_time(app: Greenq, given: Any, told: str) -> None:
    app.conf.task_annotations = given
    task = named(app, "t.add")
    for use in (lambda: app.tasks, lambda: task.delay(1, 2), lambda: app.tasks):
        with pytest.raises(errors.ConfigError) as refused:
            use()
        assert "task_annotations" in str(refused.value)
        assert told in str(refused.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (5, "annotate"),
        ("t", "annotate"),
        ({"t.add": "10/s"}, "{attribute: value}"),
        ({"t.*": {"queue": "q"}}, "full name"),
    ],
)
def test_shape_is_checked_where_it_is_set(app: Greenq, given: Any, told: str) -> None:
    with pytest.raises(errors.ConfigError, match=r"task_annotations") as refused:
        app.conf.task_annotations = given
    assert told in str(refused.value)


def test_the_worker_runs_what_the_annotation_says() -> None:
    told: list[Any] = []

    def note(self: Any, exc: Exception, *call: Any) -> None:
        told.append((self.name, str(exc)))

    def call(self: Any, *args: Any) -> Any:
        return ["around", self.run(*args)]

    rig = Rig(
        size=1,
        task_annotations={
            "fail": {"on_failure": note, "autoretry_for": (KeyError,), "max_retries": 0},
            "add": {"__call__": call},
        },
    )

    @rig.task("fail")
    def fail() -> None:
        raise KeyError("no")

    rig.task("add")(add)
    assert rig.app.tasks

    assert run(rig, "fail")["status"] == "FAILURE"
    assert told == [("fail", "'no'")]
    assert run(rig, "add", 1, 2)["result"] == ["around", 3]


def test_message_of_an_annotated_task(app: Greenq) -> None:
    app.conf.task_annotations = {"t.add": {"soft_time_limit": 4, "time_limit": 5}}
    task = named(app, "t.add")
    assert task.app is app
    message = app.producer.prepare("t.add", (1, 2), {}, task.send_options({}))
    assert unwrap(message["text"].encode()).headers["timelimit"] == [5, 4]
