"""docs/celery-words.md has a row for each of Celery's words, and the rows are right."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import celery
import celery.canvas
import celery.result
import celery.signals
import kombu
import pytest
from celery.app.amqp import AMQP
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.task import Context as CelerysContext
from celery.app.task import extract_exec_options

import greenq
import greenq.result
from greenq.config.celery_names import ATTRIBUTES, SEND_OPTIONS, TASK_OPTIONS
from greenq.protocol.message import TaskMessage
from greenq.sending.context import Context
from greenq.sending.options import SendOptions
from tests.unit.rig import NOWHERE

PAGE = Path(__file__).parents[2] / "docs" / "celery-words.md"
STATES = {"same", "better", "omitted"}
PRIMITIVES = ("Signature", "chain", "group", "chord", "xmap", "xstarmap", "chunks")


class Row(NamedTuple):
    """A row of the page: one or more words, greenq's state of them, and the remark."""

    words: tuple[str, ...]
    state: str
    remark: str


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def read_page(text: str) -> dict[str, list[Row]]:
    """Return the rows of each section, by its heading."""
    found: dict[str, list[Row]] = {}
    section: list[Row] = []
    for line in text.splitlines():
        if line.startswith("## "):
            section = found.setdefault(line[3:], [])
        elif line.startswith("| `"):
            words, state, remark = _cells(line)
            section.append(Row(tuple(re.findall(r"`(\w+)`", words)), state, remark))
    return found


ROWS = read_page(PAGE.read_text()) if PAGE.exists() else {}


# --- Celery's words, from Celery ------------------------------------------------------------------

celerys = celery.Celery("celerys", set_as_current=False, backend="cache+memory://")
ours = greenq.Greenq("ours", broker=NOWHERE, set_as_current=False)


@ours.task(name="words.task")
def our_task() -> None:
    """Only looked at."""


def _public(owner: object) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


def _parameters(*functions: Callable[..., Any]) -> set[str]:
    """Return the names of parameters, without those of any number and the object itself."""
    return {
        each.name
        for function in functions
        for each in inspect.signature(function).parameters.values()
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        and each.name not in ("self", "cls")
        and not each.name.startswith("_")
    }


def _methods(owner: object) -> set[str]:
    return {
        name
        for name in _public(owner)
        if inspect.isroutine(inspect.getattr_static(owner, name))
        or isinstance(inspect.getattr_static(owner, name), classmethod)
    }


def _sent_options() -> set[str]:
    """Return the options of a task that Celery applies to each sending."""
    words: set[str] = set()
    for cell in extract_exec_options.__closure__ or ():
        if isinstance(cell.cell_contents, tuple):
            words.update(cell.cell_contents)
    return words


def _calling_options() -> set[str]:
    send_message = AMQP(celerys).send_task_message
    calls = _parameters(
        celery.Task.apply_async, celery.Celery.send_task, send_message, kombu.Producer.publish,
        AMQP.as_task_v2, celery.canvas.Signature.apply_async, celery.canvas.group.apply_async,
    )  # fmt: skip
    # What is sent, not how.
    return (calls | _sent_options()) - {"args", "body", "kwargs", "message", "name"}


def _quoted(function: Callable[..., Any], pattern: str) -> set[str]:
    """Return the names that a function of Celery's reads from a task, as its source has them."""
    found = set(re.findall(pattern, inspect.getsource(function)))
    assert found
    return found


def _task_options() -> set[str]:
    attributes = _public(celery.Task) - _methods(celery.Task)
    settings = {name for name, _ in celery.Task.from_config}
    retries = _quoted(add_autoretry_behaviour, r"getattr\(task, '(\w+)'")
    routing = _quoted(celery.Task.bind, r"'(\w+)'(?=[,)])")
    made = _parameters(celery.Celery._task_from_fun) - {"fun"}
    return (attributes | settings | retries | routing | made | _sent_options()) - {"app", "request"}


def _signature_words() -> set[str]:
    words: set[str] = set()
    for kind in PRIMITIVES:
        words |= _public(getattr(celery.canvas, kind))
    return words - _public(dict)


# --- what greenq has ------------------------------------------------------------------------------


def _has(owner: object, name: str) -> bool:
    """Tell whether an object or a class has an attribute, without reading it, and not advice."""
    try:
        inspect.getattr_static(owner, name)
    except AttributeError:
        return False
    kind = owner if isinstance(owner, type) else type(owner)
    return all(name not in ATTRIBUTES.get(each.__name__, {}) for each in kind.__mro__)


def _takes_task_option(name: str) -> bool:
    if name in TASK_OPTIONS:
        return False
    # Those of the decorator itself.
    return name in {*greenq.Task.OPTIONS, "base", "bind"} or _has(our_task, name)


def _has_signature_word(name: str) -> bool:
    """Tell whether each primitive that has the word in Celery has it here."""
    return all(
        _has(getattr(greenq, kind), name)
        for kind in PRIMITIVES
        if name in _public(getattr(celery.canvas, kind))
    )


def _signals() -> set[str]:
    """Return the names of Celery's signals; its `__all__` lacks some."""
    kept = vars(celery.signals).items()
    return {name for name, each in kept if isinstance(each, celery.signals.Signal)}


def _has_signal(name: str) -> bool:
    try:
        return bool(getattr(importlib.import_module("greenq.signals"), name))
    except ImportError:
        return False


CELERYS_HANDLES = {
    "AsyncResult": celery.result.AsyncResult("a", app=celerys),
    "GroupResult": celery.result.GroupResult("a", [], app=celerys),
    "ResultSet": celery.result.ResultSet([], app=celerys),
    "EagerResult": celery.result.EagerResult("a", None, "SUCCESS"),
}
HANDLES = {
    "AsyncResult": greenq.result.AsyncResult("a", app=ours),
    "GroupResult": greenq.result.GroupResult("a", [], app=ours),
    "ResultSet": greenq.result.ResultSet([], app=ours),
    "EagerResult": greenq.result.EagerResult("a", None, "SUCCESS", app=ours),
}
# One that has each field: of a direct call, every field is None.
_CONTEXT = Context(TaskMessage(task="words.task", id="a"))


class Section(NamedTuple):
    """What a section of the page must list, and whether greenq has a word."""

    words: set[str]
    has: Callable[[str], bool]
    advice: Mapping[str, object] = {}


SECTIONS = {
    "Calling options": Section(
        _calling_options(),
        lambda name: name in {*SendOptions.__annotations__, "task_type"},
        SEND_OPTIONS,
    ),
    "Canvas primitives": Section(set(celery.canvas.__all__), lambda name: hasattr(greenq, name)),
    "Signatures": Section(_signature_words(), _has_signature_word),
    **{
        kind: Section(
            _public(CELERYS_HANDLES[kind]),
            functools.partial(_has, handle),
            ATTRIBUTES.get(kind, {}),
        )
        for kind, handle in HANDLES.items()
    },
    "Task options": Section(
        _task_options(), _takes_task_option, {**ATTRIBUTES["Task"], **TASK_OPTIONS}
    ),
    "The request": Section(_public(CelerysContext), lambda name: hasattr(_CONTEXT, name)),
    "Task methods": Section(
        _methods(celery.Task) | {"app", "request"},
        lambda name: _has(our_task, name),
        ATTRIBUTES["Task"],
    ),
    "The app": Section(_public(celerys), lambda name: _has(ours, name), ATTRIBUTES["Greenq"]),
    "Signals": Section(_signals(), _has_signal),
}


def _of(section: str, *states: str) -> list[tuple[str, Row]]:
    return [
        (word, row) for row in ROWS.get(section, []) if row.state in states for word in row.words
    ]


def test_page_has_these_sections_and_states() -> None:
    listed = [section for section, rows in ROWS.items() if rows]
    assert listed == list(SECTIONS)
    assert {row.state for rows in ROWS.values() for row in rows} == STATES


@pytest.mark.parametrize("section", SECTIONS)
def test_each_word_of_celery_has_one_row_and_no_word_is_made_up(section: str) -> None:
    words = [word for word, _ in _of(section, *STATES)]
    assert len(words) == len(set(words))
    assert SECTIONS[section].words - set(words) == set(), "Celery has them, the page has no row"
    assert set(words) - SECTIONS[section].words == set(), "Celery has no such words"


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_the_same_or_better_is_there(section: str) -> None:
    has = SECTIONS[section].has
    assert [word for word, _ in _of(section, "same", "better") if not has(word)] == []


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_left_out_is_not_there_and_the_row_says_what_to_do(section: str) -> None:
    has, advice = SECTIONS[section].has, SECTIONS[section].advice
    left_out = _of(section, "omitted")
    assert [word for word, _ in left_out if has(word)] == []
    assert [word for word, row in left_out if not row.remark] == []
    # A program that uses it is told so, too.
    if advice:
        assert [word for word, _ in left_out if word not in advice] == []


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_better_says_how(section: str) -> None:
    assert [word for word, row in _of(section, "better") if not row.remark] == []


def _both(section: str, word: str) -> list[tuple[Any, Any]]:
    """Return Celery's and greenq's functions of a word."""
    owners: dict[str, list[tuple[Any, Any]]] = {
        "Task methods": [(celery.Task, greenq.Task)],
        "The app": [(celery.Celery, greenq.Greenq)],
        "Signatures": [
            (getattr(celery.canvas, kind), getattr(greenq, kind)) for kind in PRIMITIVES
        ],
        **{
            kind: [(getattr(celery.result, kind), getattr(greenq.result, kind))] for kind in HANDLES
        },
    }
    found = []
    for theirs, own in owners.get(section, []):
        if word in _public(theirs) and _has(own, word):
            pair = [inspect.getattr_static(owner, word) for owner in (theirs, own)]
            pair = [getattr(each, "__func__", each) for each in pair]
            if all(map(inspect.isfunction, pair)):
                found.append((pair[0], pair[1]))
    return found


def _accepts(function: Callable[..., Any]) -> set[str] | None:
    """Return the names of arguments that a function takes, None if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    names = {each.name for each in parameters}
    for each in parameters:
        if each.kind is each.VAR_KEYWORD:
            if each.annotation != "Unpack[SendOptions]":
                return None
            names |= SendOptions.__annotations__.keys()
    return names


@pytest.mark.parametrize("section", SECTIONS)
def test_row_names_each_parameter_that_is_left_out(section: str) -> None:
    silent = []
    for word, row in _of(section, "same", "better"):
        for theirs, own in _both(section, word):
            accepted = _accepts(own)
            if accepted is not None:
                named = set(re.findall(r"`(\w+)", row.remark))
                silent += [(word, name) for name in _parameters(theirs) - accepted - named]
    assert sorted(set(silent)) == []


def test_row_that_is_missing_is_seen() -> None:
    page = PAGE.read_text()
    line = next(line for line in page.splitlines() if line.startswith("| `countdown`"))
    rows = read_page(page.replace(line, ""))["Calling options"]
    listed = {word for row in rows for word in row.words}
    assert SECTIONS["Calling options"].words - listed == {"countdown"}
