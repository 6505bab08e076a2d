"""`task_annotations`: task attributes that settings change, without touching the task's code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from greenq.config.imports import import_object
from greenq.errors import ConfigError, Problem
from greenq.task import BaseTask
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

# The key for all tasks in a mapping of annotations.
_ALL = "*"


def annotate(task: BaseTask[Any, Any], annotations: Sequence[Any]) -> None:
    """Apply the setting to a task: first the entry for its name, then the entry for all tasks.

    If there are several annotations, the first entry for the name and the first entry for all tasks
    apply. As in Celery, the entry for all tasks takes precedence.

    Raises:
        ConfigError: an option is invalid, an attribute's name looks misspelt, or an object
            named in the setting cannot be imported.
    """
    made = [_made(each) for each in annotations]
    by_name = (_of_task(each, task) for each in made)
    for_all = (_of_all(each) for each in made)
    for found in (by_name, for_all):
        attributes = next((each for each in found if each is not None), None)
        if attributes:
            _change(task, attributes)


def _made(annotation: Any) -> Any:
    """Return the annotating object; instantiate a class, given directly or by name."""
    if isinstance(annotation, str):
        annotation = _imported(annotation)
    return annotation() if isinstance(annotation, type) else annotation


def _imported(path: str) -> Any:
    try:
        return import_object(path)
    except (ImportError, AttributeError) as exc:
        raise _problem(path, str(exc)) from exc


def _of_task(annotation: Any, task: BaseTask[Any, Any]) -> Mapping[str, Any] | None:
    if isinstance(annotation, Mapping):
        return annotation.get(task.name)
    found: Mapping[str, Any] | None = annotation.annotate(task)
    return found


def _of_all(annotation: Any) -> Mapping[str, Any] | None:
    if isinstance(annotation, Mapping):
        return annotation.get(_ALL)
    ask = getattr(annotation, "annotate_any", None)
    return None if ask is None else ask()


def _change(task: BaseTask[Any, Any], attributes: Mapping[str, Any]) -> None:
    """Give the task its own class, whose attributes override those of its old class.

    As a result, functions become methods, even `__call__`, and other tasks of the old class do not
    change.
    """
    old = type(task)
    new: dict[str, Any] = {"__module__": old.__module__, "__doc__": old.__doc__}
    for name, value in attributes.items():
        attribute = name.removeprefix("@")
        _check_name(task, attribute)
        new[attribute] = value(_code(task, attribute)) if name != attribute else value
    task.__class__ = type(old.__name__, (old,), new)
    for attribute in new.keys() & vars(task).keys() - {"__module__", "__doc__"}:
        delattr(task, attribute)
    try:
        task.check_options()
    except (TypeError, ValueError) as exc:
        raise _problem(task.name, str(exc)) from exc


def _code(task: BaseTask[Any, Any], attribute: str) -> Any:
    """Return the function to wrap; for a bound task, its first argument is the task."""
    if attribute == "run" and "run" in vars(task):
        return task.function
    return getattr(type(task), attribute)


def _check_name(task: BaseTask[Any, Any], attribute: str) -> None:
    """Refuse a misspelt attribute; any other name is a custom attribute."""
    if attribute in dir(task):
        return
    hint = suggestion(attribute, dir(BaseTask), cutoff=0.8)
    if hint:
        raise _problem(task.name, f"tasks have no attribute {attribute!r}{hint}")


def _problem(value: str, reason: str) -> ConfigError:
    return ConfigError([Problem("task_annotations", value, reason)])
