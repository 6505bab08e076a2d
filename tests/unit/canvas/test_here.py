"""Workflows that run where they are sent."""

from __future__ import annotations

from typing import Any

import pytest

from greenq import Greenq, chain, chord, group
from greenq.errors import ChordError
from greenq.result import EagerResult, GroupResult

app = Greenq("here", broker="redis://127.0.0.1:1/0", set_as_current=False)
seen: list[Any] = []


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def fail(*_args: Any) -> None:
    raise ValueError("no")


@app.task(bind=True)
def place(self: Any, *_args: Any) -> tuple[Any, Any]:
    return self.request.group, self.request.group_index


@app.task
def note(value: Any) -> None:
    seen.append(value)


@app.task
def note_error(request: Any, exc: Exception, traceback: str) -> None:
    seen.append((request.id, str(exc), "ValueError: no" in traceback))


@pytest.fixture(autouse=True)
def forgotten() -> None:
    seen.clear()


def test_signature_runs_here() -> None:
    assert add.s(2).apply((3,)).get() == 5
    assert add.si(2, 2).apply((3,)).get() == 4
    assert add.map([1, 2]).apply().get() == [1, 2]
    assert add.starmap([(1, 2), (3, 4)]).apply().get() == [3, 7]
    assert add.chunks([(n, n) for n in range(3)], 2).apply().get() == [[0, 2], [4]]


def test_chain_passes_values_on() -> None:
    result = chain(add.s(1), add.s(10), add.s(100)).apply((5,))
    assert (result.get(), result.parent.get(), result.parent.parent.get()) == (116, 16, 6)
    assert result.parent.parent.parent is None
    assert (add.s(1, 1) | (add.s(2) | add.s(3))).apply().get() == 7
    assert (add.s(1, 1) | group(add.s(1), add.s(2)) | total.s() | add.s(1)).apply().get() == 8
    nested = group(add.s(1, 1), group(add.s(2, 2), add.s(3, 3)) | total.s())
    assert nested.apply().get() == [2, 10]


def test_failure_ends_a_chain() -> None:
    result = chain(fail.s(), note.s()).apply()
    assert result.failed()
    assert seen == []
    with pytest.raises(ValueError, match="no"):
        chain(fail.s(), note.s()).apply(throw=True)
    result = (group(add.s(1, 1), fail.s()) | note.s()).apply()
    assert isinstance(result.result, ChordError)
    assert seen == []


def test_group_and_chord() -> None:
    result = group(add.s(n) for n in range(3)).apply((1,))
    assert isinstance(result, GroupResult)
    assert result.get() == [1, 2, 3]
    placed = group(place.s(), place.s()).apply()
    assert placed.get() == [(placed.id, 0), (placed.id, 1)]
    whole = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply()
    assert (whole.get(), whole.parent.get()) == (6, [2, 4])
    broken = chord([add.s(1, 1), fail.s()], total.s()).apply()
    with pytest.raises(ChordError, match=r"Dependency .* raised ValueError\('no'\)"):
        broken.get()
    assert broken.name == total.name
    with pytest.raises(ValueError, match="no body"):
        chord([add.s(1, 1)]).apply()


def test_callbacks_run_here() -> None:
    add.s(1, 1).set(link=[note.s(), note.si("done")]).apply()
    assert seen == [2, "done"]
    seen.clear()
    result = fail.s().on_error(note_error.s()).on_error(note.s()).apply()
    assert seen == [(result.id, "no", True), result.id]


def test_workflows_are_not_sent_in_eager_mode() -> None:
    eager = Greenq("eager", task_always_eager=True, broker="redis://127.0.0.1:1/0")

    @eager.task
    def double(n: int) -> int:
        return 2 * n

    @eager.task
    def summed(numbers: list[int]) -> int:
        return sum(numbers)

    for result, value in (
        (double.s(2).delay(), 4),
        ((double.s(2) | double.s()).delay(), 8),
        (group(double.s(n) for n in range(3)).delay(), [0, 2, 4]),
        (chord([double.s(1), double.s(2)])(summed.s()), 6),
        (double.chunks([(1,), (2,), (3,)], 2).delay(), [[2, 4], [6]]),
        (double.map([1, 2]).delay(), [2, 4]),
    ):
        assert isinstance(result, (EagerResult, GroupResult))
        assert result.get() == value


@app.task(bind=True)
def replaced(self: Any, sig: Any) -> Any:
    return self.replace(sig)


def test_replacement_runs_here() -> None:
    assert replaced.s(add.s(1, 2) | add.s(3)).apply().get() == 6
    assert replaced.s(group(add.s(1, 2), add.s(3))).apply().get() == [3, 3]
    failed = replaced.s(fail.s()).apply()
    assert isinstance(failed.result, ValueError)
