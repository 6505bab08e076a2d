"""The tasks of one app: registered by name, shared ones included, and annotated on first use."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from greenq.canvas.built_in import BUILT_IN
from greenq.errors import AlreadyRegistered, NotRegistered
from greenq.registry.annotations import annotate
from greenq.registry.shared import Definition, place, shared
from greenq.task import BaseTask, TaskApp
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T", bound=BaseTask[Any, Any])

# The number of characters of an unknown name that are compared with the known names.
_COMPARED_CHARS = 200


class RegistryApp(TaskApp, Protocol):
    """What the registry needs from its app."""

    @property
    def main(self) -> str:
        """The name of the app, which begins the names of tasks defined in ``__main__``."""

    @property
    def conf(self) -> Mapping[str, Any]:
        """The settings by name."""


class TasksByName(dict[str, T], Generic[T]):
    """A mapping from name to task; for a missing name, the error suggests a similar one.

    Each of Celery's built-in tasks is created when it is first looked up; for a worker, all of
    them are created at once.
    """

    def __init__(self, app: RegistryApp, task_class: type[T]) -> None:
        """Create an empty mapping for an app; `task_class` is the class of the built-in tasks."""
        super().__init__()
        self._app = app
        self._task_class = task_class

    def __missing__(self, name: str) -> T:
        """Return a built-in task, or raise NotRegistered."""
        if name not in BUILT_IN:
            raise NotRegistered(name)
        made = Definition(BUILT_IN[name], name, True, self._task_class, {"typing": False})
        task = self[name] = made.make(lambda: self._app, "celery", self._task_class)
        return task

    def with_built_in(self) -> TasksByName[T]:
        """Create all built-in tasks, which a worker needs, and return this registry."""
        for name in BUILT_IN:
            _ = self[name]
        return self

    def nearest(self, name: str) -> str:
        """Return a hint that names a registered task similar to `name`, or empty text."""
        # Comparing takes longer for longer names, and the name may be untrusted.
        return suggestion(name[:_COMPARED_CHARS], self)


class AppTasks(Generic[T]):
    """Defines, registers and annotates the tasks of one app.

    Attributes:
        by_name: the registered tasks.
        own_class: the class for later tasks if the app has its own; otherwise None.
        unannotated: tasks to be annotated on first use, since there may be no settings before then.
    """

    def __init__(
        self,
        app: RegistryApp,
        ready: Callable[[], RegistryApp],
        task_class: type[T],
        own_class: type[T] | None,
    ) -> None:
        """Create an empty registry; a task gets its app from `ready`, which annotates the tasks."""
        self._app = app
        self._ready = ready
        self._task_class = task_class
        self.own_class = own_class
        self.by_name: TasksByName[T] = TasksByName(app, task_class)
        self.unannotated: deque[T] = deque()
        self._annotating = self._annotated = False
        self._lock = threading.RLock()
        # This app's versions of the shared tasks that it has created so far, in order of
        # definition.
        self._shared: list[T] = []

    def is_complete(self) -> bool:
        """Return whether all shared tasks exist, and all tasks are annotated."""
        return not self.unannotated and len(self._shared) == len(shared.definitions)

    def define(self, definition: Definition) -> T:
        """Create a task and register it; raise the errors of `register`."""
        return self.register(self._made(definition))

    def complete(self, task: T) -> T:
        """Complete a class-based task and register it; raise the errors of `register`."""
        task.complete(self._ready, self._app.main)
        return self.register(task)

    def base_class(self, module: str) -> type[T]:
        """Return the class for later tasks; if the app has none, create one that is bound to it."""
        if self.own_class is None:
            bound = {"_app": staticmethod(self._ready), "__module__": module}
            self.own_class = type("Task", (self._task_class,), bound)
        return self.own_class

    def _made(self, definition: Definition) -> T:
        return definition.make(self._ready, self._app.main, self.own_class or self._task_class)

    def take_shared(self) -> Sequence[T]:
        """Create this app's version of each shared task; return them in their order of definition.

        If the app already has a task with the same name but another function, keep that task.
        """
        if len(self._shared) < len(shared.definitions):
            with self._lock:
                for definition in shared.definitions[len(self._shared) :]:
                    task = self._made(definition)
                    known = self.by_name.get(task.name)
                    if known is not None and place(known.function) != place(task.function):
                        task = known
                    else:
                        self._add(task)
                    self._shared.append(task)
        return self._shared

    def annotate(self) -> None:
        """Apply the setting `task_annotations` to the tasks that are waiting for it."""
        annotations = self._app.conf["task_annotations"]
        with self._lock:
            if self._annotating:
                return  # an annotation has accessed its task's app
            self._annotating = True
            try:
                while self.unannotated:
                    annotate(self.unannotated[0], annotations)
                    self.unannotated.popleft()
                self._annotated = True
            finally:
                self._annotating = False

    def register(self, task: T) -> T:
        """Register a task.

        Raises:
            AlreadyRegistered: another function is registered under the task's name.
        """
        known = self.by_name.get(task.name)
        if known is not None:
            if place(known.function) == place(task.function):
                # The same module has been imported again, as reloaders and test runners do.
                return self._add(task)
            raise AlreadyRegistered(
                f"two tasks are named {task.name!r}: {place(known.function)} and "
                f"{place(task.function)}; give one of them another name="
            )
        return self._add(task)

    def _add(self, task: T) -> T:
        self.by_name[task.name] = task
        self.unannotated.append(task)
        task.on_bound(self._app)
        if self._annotated:
            # A worker may run the task without reading `tasks` again.
            self.annotate()
        return task
