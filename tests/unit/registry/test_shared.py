"""Tasks that belong to every app."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from greenq import Greenq, Task, shared_task
from greenq.registry.shared import shared
from tests.unit.rig import NOWHERE


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make apps, and forget them."""
    monkeypatch.setattr(shared, "app", None)
    with ExitStack() as stack:

        def make(name: str, **options: Any) -> Greenq:
            app = Greenq(name, broker=NOWHERE, **options)
            stack.callback(app.close)
            return app

        yield make


class First(Task[Any, Any]):
    max_retries = 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return "first", self.app.main, self.run(*args, **kwargs)


class Second(Task[Any, Any]):
    max_retries = 2


def test_each_app_makes_it_from_its_own_class(made: Any) -> None:
    @shared_task(name="shared.classes")
    def task(x: int) -> int:
        return x

    first = made("one", task_cls=First)
    second = made("two")
    second.Task = Second

    assert isinstance(first.tasks["shared.classes"], First)
    assert isinstance(second.tasks["shared.classes"], Second)
    assert first.tasks["shared.classes"] is not second.tasks["shared.classes"]
    assert (first.tasks["shared.classes"].app, task.app) == (first, second)
    assert (task.max_retries, task(3), isinstance(task, Second)) == (2, 3, True)
    first.set_default()
    assert (task.max_retries, task(3), isinstance(task, First)) == (1, ("first", "one", 3), True)
    assert task == first.tasks["shared.classes"]
    assert hash(task) == hash(first.tasks["shared.classes"])


def test_its_own_class_comes_first(made: Any) -> None:
    @shared_task(name="shared.own_class", base=Second, bind=True)
    def task(self: Any) -> Any:
        return self.max_retries, self.app.main

    made("one", task_cls=First)
    assert task() == (2, "one")


def test_what_is_set_is_set_in_the_current_app(made: Any) -> None:
    @shared_task(name="shared.set")
    def task() -> None:
        """Do nothing."""

    first, second = made("one"), made("two")
    task.rate_limit = "1/s"
    limits = [app.tasks["shared.set"].rate_limit for app in (first, second)]
    assert limits == [None, "1/s"]


def test_annotations_of_the_app_hold(made: Any) -> None:
    @shared_task(name="shared.annotated")
    def task() -> None:
        """Do nothing."""

    made("one", task_annotations={"shared.annotated": {"priority": 3}})
    assert task.app.main == "one"
    assert task.priority == 3


def test_without_an_app_it_can_be_called(made: Any) -> None:
    @shared_task(name="shared.alone")
    def task(x: int) -> int:
        """Return it."""
        return x

    assert isinstance(task, Task)
    assert (task(3), task.name, task.__doc__, repr(task)) == (
        3, "shared.alone", "Return it.", "<task shared.alone>",
    )  # fmt: skip
    assert "apply_async" in dir(task)


def test_an_apps_own_task_of_the_name_stays(made: Any) -> None:
    app = made("one")
    own = app.task(name="shared.taken")(lambda: "own")

    @shared_task(name="shared.taken")
    def task() -> str:
        return "shared"

    assert app.tasks["shared.taken"] is own
    assert task() == "own"


def test_function_that_is_defined_anew_replaces_the_old_one(made: Any) -> None:
    def define(value: int) -> Any:
        @shared_task(name="shared.anew")
        def task() -> int:
            return value

        return task

    app = made("one")
    define(1)
    assert app.tasks["shared.anew"]() == 1
    assert define(2)() == 2
    assert app.tasks["shared.anew"]() == 2


def test_name_of_a_task_in_main_is_the_apps(made: Any) -> None:
    def function() -> None:
        """Do nothing."""

    function.__module__ = "__main__"
    shared_task(function)
    assert "one.function" in made("one").tasks


def test_what_is_wrong_is_said_where_it_is_written(made: Any) -> None:
    with pytest.raises(TypeError, match="did you mean max_retries"):
        shared_task(max_retry=3)(lambda: None)
    with pytest.raises(TypeError, match="must decorate a function"):
        shared_task(3)  # type: ignore[call-overload]
