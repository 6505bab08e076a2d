"""Tasks that belong to every app of a process, as `greenq.app.shared_task` defines them."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from greenq.errors import ConfigError, Problem
from greenq.result import ask_for_app
from greenq.task import BaseTask, TaskApp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T", bound="BaseTask[..., Any]")


class SharingApp(TaskApp, Protocol):
    """What a shared task needs from the current app."""

    def take_shared(self) -> Sequence[BaseTask[Any, Any]]:
        """Return the app's own version of each shared task, in the order of definition."""


class Definition(NamedTuple):
    """The function and the decorator's arguments from which each app creates its own task."""

    function: Callable[..., Any]
    name: str | None
    bind: bool
    base: type[BaseTask[..., Any]] | None
    options: Mapping[str, Any]

    def make(self, app: Callable[[], TaskApp], main: str, task_class: type[T]) -> T:
        """Create a task for an app whose default task class is `task_class`.

        Args:
            app: returns the app when the task is used.
            main: the name of the app, which begins the names of tasks defined in ``__main__``.
            task_class: used unless the definition names a class.

        Raises:
            TypeError: an option is wrong, or the function cannot be a task.
        """
        function = self.function
        if not callable(function):
            raise TypeError(f"@app.task must decorate a function, not {function!r}")
        module = main if function.__module__ == "__main__" else function.__module__
        made = cast("type[T]", self.base or task_class)
        name = self.name or made.name or f"{module}.{function.__name__}"
        _refuse_what_does_not_run(name, function)
        # As in Celery, a custom constructor takes no arguments and need not call the base class's.
        task = made() if made.__init__ is not BaseTask.__init__ else made.__new__(made)
        BaseTask.__init__(task, function, name=name, app=app, bind=self.bind, options=self.options)
        return task


def place(function: Callable[..., Any]) -> str:
    """Return where a function is defined, to distinguish two functions with the same name."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
    return f"{function.__module__}.{getattr(function, '__qualname__', '?')} ({where})"


class _Shared:
    """What the apps of a process share: the definitions, and the current app."""

    def __init__(self) -> None:
        self.app: SharingApp | None = None
        # The list is append-only, so that a count tells each app which tasks it has already
        # created.
        self.definitions: list[Definition] = []

    def current(self) -> SharingApp:
        """Return the app that shared tasks currently use."""
        if self.app is None:
            raise ConfigError(
                [Problem("app", None, "a shared task was used before any Greenq app was created")]
            )
        return self.app


# The current app is kept here and nowhere else; tasks without an app find it here when used.
shared = _Shared()
ask_for_app(shared.current)


class SharedTask:
    """Represents the task that the current app has created from a definition.

    If there is no app, the task can be called but not sent.
    """

    def __init__(self, definition: Definition, task_class: type[BaseTask[..., Any]]) -> None:
        """Add the definition to those that all apps share; without an app, `task_class` is used.

        Raises:
            TypeError: an option is wrong, or the function cannot be a task.
        """
        # Create a task and discard it, so that errors are raised where the task is defined.
        definition._replace(base=None).make(shared.current, "__main__", task_class)
        function = definition.function
        own = vars(self)
        for name in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(function, name):
                own[name] = getattr(function, name)
        own["_definition"] = definition
        own["_task_class"] = task_class
        own["_index"] = len(shared.definitions)
        own["_alone"] = None
        shared.definitions.append(definition)

    @property
    def _task(self) -> BaseTask[Any, Any]:
        task: BaseTask[Any, Any]
        if shared.app is not None:
            task = shared.app.take_shared()[self._index]
        else:
            if self._alone is None:
                vars(self)["_alone"] = self._definition.make(
                    shared.current, "__main__", self._task_class
                )
            task = self._alone
        return task

    @property
    def __class__(self) -> type[Any]:
        """The class of the task, for `isinstance`."""
        return type(self._task)

    @__class__.setter
    def __class__(self, value: type[Any]) -> None:
        raise TypeError("the class of a shared task cannot be set: each app has its own task")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function directly, in this process."""
        return self._task(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Read an attribute of the task."""
        return getattr(self._task, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the task."""
        setattr(self._task, name, value)

    def __dir__(self) -> list[str]:
        """List the attributes of the task."""
        return dir(self._task)

    def __eq__(self, other: object) -> bool:
        """Return whether `other` is this object, or the task that this object represents."""
        return self is other or self._task is other

    def __hash__(self) -> int:
        """Hash the task."""
        return hash(self._task)

    def __repr__(self) -> str:
        """Show the task."""
        return repr(self._task)


def _refuse_what_does_not_run(task_name: str, function: Callable[..., Any]) -> None:
    """Refuse functions that do not run when called: generators and coroutines.

    A decorator may turn them into proper tasks, so the function that it wraps is not checked.
    """
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"task {task_name} is an async def, which cannot be a task yet: write it as a plain "
            "function with blocking calls, which greenlets make concurrent"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"task {task_name} is a generator (it has a yield), which cannot be a task: return a "
            "list, or send a task for each item"
        )
