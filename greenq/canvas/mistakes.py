"""Errors in composing workflows: each says what was given, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from greenq.protocol.serialize import saferepr
from greenq.result import ResultBase


def not_a_signature(value: Any, where: str) -> TypeError:
    """Return the error for something that is not a signature."""
    if isinstance(value, ResultBase):
        hint = "it has already been sent; use s() instead of delay()"
    elif hasattr(value, "apply_async"):
        short = str(value.name).rpartition(".")[2]
        hint = f"that is the task itself; write {short}.s(…)"
    elif isinstance(value, dict):
        hint = 'a signature as plain data has at least the key "task"'
    elif isinstance(value, (list, tuple)):
        hint = "combine several signatures with group(…) or chain(…)"
    elif value is None or not callable(value):
        hint = "was the task called? Write add.s(2, 2), not add(2, 2)"
    else:
        hint = "only tasks have signatures; put @app.task on the function"
    return TypeError(f"{where} takes signatures, not {saferepr(value)}: {hint}")


def check_call(args: object, kwargs: object, where: str) -> None:
    """Refuse values that cannot be the arguments of a call.

    Raises:
        TypeError: `args` is one value instead of several, or `kwargs` is not a mapping.
    """
    if args is not None and (isinstance(args, (str, bytes)) or not isinstance(args, Iterable)):
        raise TypeError(
            f"{where} takes the positional arguments as one list or tuple, not {saferepr(args)}: "
            f"write {where}(({saferepr(args)},)), or use delay() or s()"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"{where} takes the keyword arguments as a dict, not {saferepr(kwargs)}")
