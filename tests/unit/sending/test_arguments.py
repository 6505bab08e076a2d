"""Arguments are looked at where a task is sent: whether they fit, and what cannot be written."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from greenq import Greenq
from greenq.errors import EncodeError, NotAllSent
from greenq.protocol.serialize import dumps
from greenq.sending.arguments import checker, explained

NOWHERE = "redis://127.0.0.1:1/0"


def _functions() -> list[Callable[..., Any]]:
    return [
        lambda: None,
        lambda x: None,
        lambda x, y=1: None,
        lambda x, /, y: None,
        lambda x, /, **rest: None,
        lambda *rest: None,
        lambda x, *rest: None,
        lambda x, *rest, k: None,
        lambda *, k: None,
        lambda *, k=1, **rest: None,
        lambda x, y, z=3, *rest, k, m=2, **more: None,
        lambda x, y: None,
        functools.partial(lambda x, y, z: None, 1),
        functools.partial(lambda x, y=2: None, y=1),
    ]


@pytest.mark.parametrize("function", _functions())
def test_it_refuses_what_the_call_itself_would_refuse(function: Callable[..., Any]) -> None:
    whole = checker("m.f", function, bound=False)
    check = whole.arguments
    signature = inspect.signature(function)
    names = ("x", "y", "z", "k", "m", "other")
    for count, width in itertools.product(range(5), range(5)):
        for chosen in itertools.combinations(names, width):
            args, kwargs = (0,) * count, dict.fromkeys(chosen, 0)
            try:
                signature.bind(*args, **kwargs)
            except TypeError:
                with pytest.raises(TypeError, match=r"task m\.f: .*; it takes \("):
                    check(args, kwargs)
                with pytest.raises(TypeError, match=r"task m\.f: .*; it takes \("):
                    whole.call((args, kwargs))
            else:
                check(args, kwargs)
                assert whole.call((args, kwargs)) == (args, kwargs)


def test_task_itself_is_not_one_of_the_arguments() -> None:
    def bound(self: object, x: int) -> None: ...

    check = checker("m.f", bound, bound=True).arguments
    check((1,), {})
    check((), {"x": 1})
    with pytest.raises(TypeError, match=r"task m\.f: missing a required argument: 'x'; it takes"):
        check((), {})
    with pytest.raises(TypeError, match="too many positional arguments"):
        check((1, 2), {})


def test_function_without_a_signature_takes_anything() -> None:
    checker("m.f", type("T", (), {"__call__": max})(), bound=False).arguments((1, 2, 3), {"q": 1})


@pytest.fixture
def app() -> Greenq:
    return Greenq("proj", broker=NOWHERE, set_as_current=False)


def test_wrong_arguments_are_a_type_error_at_the_caller(app: Greenq) -> None:
    @app.task(name="m.add")
    def add(x: int, y: int) -> int:
        return x + y

    sends: list[Callable[[], object]] = [
        lambda: add.delay(1),  # type: ignore[call-arg]
        lambda: add.apply_async((1, 2, 3)),
        lambda: add.apply_async((1,), {"z": 2}),
        lambda: add.apply_async(),
    ]
    for send in sends:
        with pytest.raises(TypeError, match=r"task m\.add: .*it takes \(x"):
            send()
    with pytest.raises(NotAllSent, match="missing a required argument: 'y'"):
        add.apply_async_many([((1,), {})])


def test_typing_false_leaves_them_to_the_worker(app: Greenq) -> None:
    @app.task(name="m.add", typing=False)
    def add(x: int, y: int) -> int:
        return x + y

    add.argument_check.arguments((), {"nothing": 1})


@pytest.mark.parametrize(
    ("args", "kwargs", "serializer", "told"),
    [
        (({1},), {}, "json", "args[0] is a set, {1}"),
        ((1, {"a": [0, {1}]}), {}, "json", "args[1]['a'][1] is a set, {1}"),
        ((), {"image": object}, "json", "kwargs['image'] is a type, <class 'object'>"),
        (({(1, 2): 3},), {}, "json", "args[0] is a dict, {(1, 2): 3}"),
        ((lambda: None,), {}, "pickle", "args[0] is a function, <function"),
        (({"a": 1 << 80},), {}, "msgpack", "args[0]['a'] is an int, 1208925819614629174706176"),
    ],
)
def test_what_cannot_be_written_is_named_by_task_argument_and_path(
    args: Sequence[Any], kwargs: Mapping[str, Any], serializer: str, told: str
) -> None:
    with pytest.raises(EncodeError) as refused:
        dumps((args, kwargs), serializer)

    error = explained("m.size", args, kwargs, serializer, refused.value)

    assert f"task m.size: {told}" in str(error)


def test_what_contains_itself_is_named(app: Greenq) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError, match=r"task m\.size: args\[0\]"):
        app.send_task("m.size", (endless,))


def test_sender_is_told_before_anything_is_sent(app: Greenq) -> None:
    with pytest.raises(EncodeError, match=r"task m\.size: kwargs\['x'\]\[0\] is a set"):
        app.send_task("m.size", (), {"x": [{1}]})
    with pytest.raises(NotAllSent, match=r"task m\.size: args\[0\] is a set"):
        app.send_task_many("m.size", [(({1},), {})])


def test_body_that_no_worker_would_read_is_refused_here(app: Greenq) -> None:
    app.conf.task_max_body_bytes = 1000
    with pytest.raises(EncodeError, match=r"task m\.size: .*exceeds task_max_body_bytes, 1,000"):
        app.send_task("m.size", ("x" * 1000,))


def test_body_with_more_values_than_workers_read_is_refused_here(app: Greenq) -> None:
    app.conf.task_max_body_bytes = 1_000_000
    with pytest.raises(EncodeError, match=r"task m\.size: .*more than 15,625 values"):
        app.send_task("m.size", (list(range(20_000)),))
