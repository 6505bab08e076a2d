"""What is written instead of a signature is refused with what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from greenq import Greenq, chain, chord, group, signature
from greenq.result import AsyncResult


def plain() -> None:
    """Not a task."""


MISTAKES: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "task itself": (lambda add: group(add), TypeError, "write add.s"),
    "tasks themselves": (lambda add: group(add, add), TypeError, "write add.s"),
    "task after |": (lambda add: add.s(1) | add, TypeError, r"add\(1\) \| … takes .* write add.s"),
    "result of a call": (lambda add: chain(add(1, 1), add(2, 2)), TypeError, "not 2: was the task"),
    "number": (lambda add: group(4), TypeError, "was the task called"),
    "None in a list": (lambda add: group([add.s(1, 1), None]), TypeError, "not None"),
    "sent already": (lambda add: group(AsyncResult("i")), TypeError, "it has already been sent"),
    "result in a list": (lambda add: chain([AsyncResult("i")]), TypeError, "already been sent"),
    "function": (lambda add: chain([plain]), TypeError, "put @app.task on the function"),
    "dict before |": (lambda add: {} | add.s(1), TypeError, 'at least the key "task"'),
    "name": (lambda add: group("add"), TypeError, "not 'add'"),
    "link": (lambda add: add.s().link(add), TypeError, r"link\(\) takes .* write add.s"),
    "body": (lambda add: chord([add.s(1, 1)], add), TypeError, "chord body takes .* add.s"),
    "header": (lambda add: chord(add, add.s()), TypeError, "chord header takes .* add.s"),
    "list as body": (
        lambda add: chord([add.s(1, 1)], [add.s()]), TypeError, r"with group\(…\) or chain",
    ),
    "list after |": (lambda add: add.s(1) | [add.s(2)], TypeError, r"with group\(…\)"),
    "no body": (lambda add: chord([add.s(1, 1)])(), ValueError, "no body"),
    "link without body": (lambda add: chord([]).link(add.s()), ValueError, "none yet"),
    "empty chain": (lambda add: chain().delay(), ValueError, "empty chain cannot be sent"),
    "link of a group": (
        lambda add: group(add.s(1, 1)).apply_async(link=add.s()), TypeError, "on_done",
    ),
    "parts of none": (lambda add: add.chunks([], 0), ValueError, "at least 1"),
    "option": (
        lambda add: group(add.s(1, 1)).apply_async(quue="q"), TypeError, "did you mean queue",
    ),
    "arguments": (lambda add: (add.s(1) | add.s(2)).delay(), TypeError, "missing a required"),
    "data": (lambda add: signature({"task": "a", "args": 3}), ValueError, '"args" is not a list'),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_named(app: Greenq, outgoing: Any, mistake: str) -> None:
    make, error, said = MISTAKES[mistake]
    with pytest.raises(error, match=said):
        make(app.tasks["add"])
    assert not outgoing.messages
