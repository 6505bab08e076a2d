"""Canvas shapes made systematically: each element put into each place, and what they return.

A shape is described apart from any library: `build` makes it with Celery's primitives or with
greenq's, `value` says what it returns. All tasks are ``shared.echo``, which returns its arguments,
so that a result shows which task got what.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Task(NamedTuple):
    """One task."""

    is_immutable: bool = False


class Chain(NamedTuple):
    """One after another."""

    steps: tuple[Any, ...]


class Group(NamedTuple):
    """At the same time."""

    members: tuple[Any, ...]


class Chord(NamedTuple):
    """A header and its body."""

    header: tuple[Any, ...]
    body: Any


class Many(list[Any]):
    """The values of a group."""


Shape = Task | Chain | Group | Chord

_T, _I = Task(), Task(is_immutable=True)

ELEMENTS: dict[str, Shape] = {
    "task": _T,
    "immutable": _I,
    "chain": Chain((_T, _T)),
    "group": Group((_T, _T)),
    "chord": Chord((_T, _T), _T),
    "chord to a chain": Chord((_T, _T), Chain((_T, _T))),
    "chord to a group": Chord((_T, _T), Group((_T, _T))),
    "chord of chains": Chord((Chain((_T, _T)), Chain((_T, _I))), _T),
    "chain to a group": Chain((_T, Group((_T, _T)))),
    "chain from a group": Chain((Group((_T, _T)), _T)),
    "immutable chord": Chord((_I, _I), _I),
    "chord of one": Chord((_T,), _T),
}

PLACES: dict[str, Callable[[Shape], Shape]] = {
    "alone": lambda x: x,
    "last": lambda x: Chain((_T, x)),
    "first": lambda x: Chain((x, _T)),
    "in the middle": lambda x: Chain((_T, x, _T)),
    "after itself": lambda x: Chain((x, x)),
    "in a group": lambda x: Group((_T, x)),
    "twice in a group": lambda x: Group((x, x)),
    "in a header": lambda x: Chord((_T, x), _T),
    "alone in a header": lambda x: Chord((x,), _T),
    "as a body": lambda x: Chord((_T, _T), x),
    "in a group in a chain": lambda x: Chain((_T, Group((x, _T)), _T)),
    "behind a step in a header": lambda x: Chord((Chain((_T, x)), x), _T),
    "in a header in a header": lambda x: Chord((Chord((_T, x), _T), _T), _T),
    "on both sides": lambda x: Chain((_T, Chord((x, _T), x), _T)),
    "behind a chord in a header": lambda x: Chord((Chain((Chord((_T, _T), _T), x)), _T), _T),
}

SHAPES: dict[str, Shape] = {
    f"{element}, {place}": put(shape)
    for (place, put), (element, shape) in itertools.product(PLACES.items(), ELEMENTS.items())
}


def ends_in_group(shape: Shape) -> bool:
    """Tell whether a shape is a group behind something else."""
    match shape:
        case Chain(steps):
            return isinstance(steps[-1], Group) or ends_in_group(steps[-1])
        case Chord(_, body):
            return isinstance(body, Group) or ends_in_group(body)
        case Group(members):
            return any(map(ends_in_group, members))
    return False


def collects_ends_of_groups(shape: Shape) -> bool:
    """Tell whether a header has a member that ends in a group.

    A Celery worker that collects these may lose some of them, or refuse to wait for them.
    """
    match shape:
        case Chain(steps):
            return any(map(collects_ends_of_groups, steps)) or any(
                isinstance(step, Group) and ends_in_group(step) for step in steps[:-1]
            )
        case Group(members):
            return any(map(collects_ends_of_groups, members))
        case Chord(header, body):
            return any(map(ends_in_group, header)) or any(
                map(collects_ends_of_groups, (*header, body))
            )
    return False


# Where a task runs: in the header of a chord, or anywhere else.
Queues = tuple[str | None, str | None]


class Builder:
    """Makes a shape with one library's primitives; its tasks are numbered as they are written."""

    def __init__(self, app: Any, canvas: Any, queues: Queues = (None, None)) -> None:
        self._app = app
        self._canvas = canvas
        self._queues = queues
        self._numbers = itertools.count()

    def build(self, shape: Shape, *, in_header: bool = False) -> Any:
        """Return the signature."""
        match shape:
            case Task(is_immutable):
                queue = self._queues[not in_header]
                options = {} if queue is None else {"queue": queue}
                return self._app.signature(
                    "shared.echo", (next(self._numbers),), immutable=is_immutable, options=options
                )
            case Chain(steps):
                made = [
                    self.build(
                        step,
                        in_header=in_header or (isinstance(step, Group) and step is not steps[-1]),
                    )
                    for step in steps
                ]
                return self._canvas.chain(*made, app=self._app)
            case Group(members):
                made = [self.build(member, in_header=in_header) for member in members]
                return self._canvas.group(made, app=self._app)
            case Chord(header, body):
                made = [self.build(member, in_header=True) for member in header]
                ending = self.build(body, in_header=in_header)
                return self._canvas.chord(made, ending, app=self._app)


def value(shape: Shape) -> Any:
    """Return what a shape returns."""
    return _value(shape, (), itertools.count())


def _value(shape: Shape, before: tuple[Any, ...], numbers: Iterator[int]) -> Any:
    match shape:
        case Task(is_immutable):
            given = () if is_immutable else before
            return [[*given, next(numbers)], {}]
        case Chain(steps):
            for step in steps:
                before = (_value(step, before, numbers),)
            return before[0]
        case Group(members):
            return Many(_collected(members, before, numbers))
        case Chord(header, body):
            return _value(body, (_collected(header, before, numbers),), numbers)


def _collected(
    members: tuple[Any, ...], before: tuple[Any, ...], numbers: Iterator[int]
) -> list[Any]:
    """Return the values of members, with those of groups among them in their place."""
    found = []
    for each in members:
        if isinstance(each, Group):
            found += _collected(each.members, before, numbers)
        else:
            found.append(_value(each, before, numbers))
    return found


def flat(values: Any) -> list[Any]:
    """Return values with those of groups in their place."""
    found = []
    for each in values:
        found += flat(each) if isinstance(each, Many) else [each]
    return found


def unordered(found: Any) -> Any:
    """Return a value with every list sorted: Celery reverses the members of groups in headers."""
    if isinstance(found, list):
        return sorted(map(unordered, found), key=json.dumps)
    return found
