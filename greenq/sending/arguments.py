"""Checks arguments when they are sent: whether they fit, and which value cannot be serialized.

Both kinds of errors should be raised in the caller, since a worker could report them only later and
elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from greenq.config.validators import shown
from greenq.errors import EncodeError
from greenq.protocol.serialize import dumps

if TYPE_CHECKING:
    from collections.abc import Iterator

Call = tuple[Sequence[Any], Mapping[str, Any]]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_MANY = 1 << 30

# A longer path would not help the reader, and a structure that contains itself has no end.
_DEPTH = 30


class Check(NamedTuple):
    """Functions that raise a TypeError for arguments that do not fit.

    Attributes:
        arguments: called with the positional and the keyword arguments.
        call: called with both as a pair, which it returns.
        least, most: if all arguments are positional, any number of them from `least` to `most`
            certainly fits.
    """

    arguments: Callable[[Sequence[Any], Mapping[str, Any]], object]
    call: Callable[[Call], Call]
    least: int = 0
    most: int = _MANY


def _take(_args: Sequence[Any], _kwargs: Mapping[str, Any]) -> None:
    """Accept any arguments."""


ACCEPT_ALL: Final = Check(_take, lambda call: call)


def checker(task: str, function: Callable[..., Any], *, bound: bool) -> Check:
    """Return functions that raise a TypeError for arguments that do not fit `function`.

    The functions count arguments and compare names, which takes a third of a microsecond. They bind
    only arguments that do not seem to fit to the signature, and the resulting error gives the
    reason.

    Args:
        task: named in the error.
        function: the function as called, not the one it wraps.
        bound: whether the function's first parameter is the task itself.
    """
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        # The function is written in C, and has no signature.
        return ACCEPT_ALL
    parameters = [*signature.parameters.values()]
    if bound and parameters and parameters[0].kind in _POSITIONAL:
        parameters = parameters[1:]
    signature = signature.replace(parameters=parameters)
    fits, least, most = _fitter(parameters)

    def check(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        # This is the common case. Positional arguments that are not a list or a tuple are refused
        # later, during serialization, with a better message.
        if not isinstance(args, (tuple, list)) or (not kwargs and least <= len(args) <= most):
            return
        if not fits(args, kwargs):
            try:
                signature.bind(*args, **kwargs)
            except TypeError as exc:
                raise TypeError(f"task {task}: {exc}; it takes {signature}") from None

    def check_call(call: Call) -> Call:
        args, kwargs = call
        if kwargs or args.__class__ is not tuple or not least <= len(args) <= most:
            check(args, kwargs)
        return call

    return Check(check, check_call, least, most)


def _fitter(
    parameters: Sequence[inspect.Parameter],
) -> tuple[Callable[[Sequence[Any], Mapping[str, Any]], bool], int, int]:
    """Return a function that tells whether arguments fit, and two numbers.

    If all arguments are positional, any number of them from the first number to the second
    certainly fits.
    """
    kinds = {each.kind for each in parameters}
    open_names = inspect.Parameter.VAR_KEYWORD in kinds
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    most = _MANY if inspect.Parameter.VAR_POSITIONAL in kinds else len(positional)
    required = {
        each.name
        for each in parameters
        if each.default is each.empty and each.kind in (*_POSITIONAL, *_BY_NAME)
    }
    # For each name, the largest number of positional arguments that leaves the name free for a
    # keyword argument.
    free_up_to = {
        each.name: positional.index(each) if each in positional else _MANY
        for each in parameters
        if each.kind in _BY_NAME
    }
    # For each number of positional arguments, how many required parameters must be passed by name.
    left = [
        len(required - {each.name for each in positional[:count]})
        for count in range(len(positional) + 1)
    ]
    last = len(positional)

    def fits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        count = len(args)
        if count > most:
            return False
        wanted = left[min(count, last)]
        for name in kwargs:
            free = free_up_to.get(name)
            if free is None:
                if not open_names:
                    return False
            elif free < count:
                return False
            elif name in required:
                wanted -= 1
        return not wanted

    least = left.index(0) if 0 in left else _MANY + 1
    return fits, least, most


def explained(
    task: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    serializer: str,
    error: EncodeError,
) -> EncodeError:
    """Return an error that adds to `error` the task's name, and the path to the value at fault."""
    named = [(f"args[{at}]", value) for at, value in enumerate(args)]
    named += [(f"kwargs[{name!r}]", value) for name, value in dict(kwargs).items()]
    for path, value in named:
        if not _is_written(value, serializer):
            where, culprit = _deepest(path, value, serializer, 0)
            what = f"{where} is {_article(type(culprit).__name__)}, {_excerpt(culprit)}"
            return EncodeError(f"task {task}: {what}: {error}")
    return EncodeError(f"task {task}: {error}")


def _is_written(value: object, serializer: str) -> bool:
    try:
        dumps(value, serializer)
    except EncodeError:
        return False
    return True


def _deepest(path: str, value: object, serializer: str, depth: int) -> tuple[str, object]:
    if depth < _DEPTH:
        for step, item in _items(value):
            if not _is_written(item, serializer):
                return _deepest(f"{path}{step}", item, serializer, depth + 1)
    return path, value


def _items(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{at}]", item) for at, item in enumerate(value))


def _article(name: str) -> str:
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def _excerpt(value: object) -> str:
    try:
        text = repr(shown("", value))
    # `repr` runs the user's own code.
    except Exception:
        return "which has no repr"
    return text if len(text) <= 80 else f"{text[:79]}…"
