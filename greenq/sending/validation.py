"""Arguments and return values that are pydantic models: ``@app.task(pydantic=True)``."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from greenq.errors import ConfigError, Problem


class Models:
    """Which parameters of a function are pydantic models, and whether its return value is one.

    A parameter counts if its annotation is a model or an optional model.
    """

    def __init__(self, task: str, function: Callable[..., Any], *, bound: bool) -> None:
        """Examine the annotations of `function`; if `bound`, its first parameter is the task.

        Raises:
            ConfigError: pydantic is not installed.
        """
        self._base = _base_model(task)
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[bound:]
        self._signature = signature.replace(parameters=parameters)
        hints = _hints(function)
        found = {each.name: self._model(hints.get(each.name)) for each in parameters}
        self._models = {name: model for name, model in found.items() if model is not None}
        self._returned = self._model(hints.get("return"))

    def _model(self, annotation: Any) -> Any:
        """Return an annotation's model, if any, along with whether None is also allowed."""
        allowed = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
        rest = [each for each in allowed if each is not type(None)]
        if len(rest) == 1 and isinstance(rest[0], type) and issubclass(rest[0], self._base):
            return rest[0], len(allowed) > 1
        return None

    def validated(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], strict: bool, context: Any
    ) -> inspect.BoundArguments:
        """Return the arguments, with models created from the data sent.

        Raises:
            TypeError: the arguments do not fit the parameters.
            pydantic.ValidationError: an argument does not fit its model.
        """
        given = self._signature.bind(*args, **kwargs)
        for name, (model, is_optional) in self._models.items():
            if name in given.arguments and not (is_optional and given.arguments[name] is None):
                value = given.arguments[name]
                given.arguments[name] = model.model_validate(value, strict=strict, context=context)
        return given

    def sent(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], how: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as they are sent, with models as plain data."""
        given = self._signature.bind(*args, **kwargs)
        for name in self._models.keys() & given.arguments.keys():
            if isinstance(given.arguments[name], self._base):
                given.arguments[name] = given.arguments[name].model_dump(**how)
        return given.args, given.kwargs

    def returned(self, value: Any, how: Mapping[str, Any]) -> Any:
        """Return a value in its form for storage: a model of the annotated class as plain data."""
        if self._returned is not None and isinstance(value, self._returned[0]):
            return value.model_dump(**how)
        return value


def validating(
    run: Callable[..., Any],
    models: Models,
    *,
    strict: bool,
    context: Mapping[str, Any] | None,
    dump: Mapping[str, Any],
    about: Callable[[], Mapping[str, Any]],
) -> Callable[..., Any]:
    """Wrap a task's code so that it receives models and returns plain data.

    Args:
        strict: whether models are validated without conversions.
        context: data for the models' validators, in addition to what `about` returns.
        dump: options for turning models into plain data.
        about: returns the data about the task for the validators.
    """

    @functools.wraps(run)
    def validated(*args: Any, **kwargs: Any) -> Any:
        given = models.validated(args, kwargs, strict, {**(context or {}), **about()})
        return models.returned(run(*given.args, **given.kwargs), dump)

    return validated


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the annotations, unresolved if a name in them cannot be resolved."""
    try:
        return typing.get_type_hints(function)
    except (NameError, AttributeError, TypeError):
        return inspect.get_annotations(function)


def _base_model(task: str) -> Any:
    """Return pydantic's BaseModel."""
    try:
        return importlib.import_module("pydantic").BaseModel
    except ModuleNotFoundError as exc:
        reason = f"task {task} needs pydantic, which is not installed: pip install pydantic"
        raise ConfigError([Problem("pydantic", True, reason)]) from exc
