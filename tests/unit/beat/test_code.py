"""Entries that code adds: their names, and what a signature contributes."""

from __future__ import annotations

import pytest

from greenq import signature
from greenq.beat.code import entry_in_code


def test_entry_is_named_after_its_call() -> None:
    name, entry = entry_in_code(30, "proj.add", (1, "b"), {"c": 2}, None, {"queue": "q"})
    assert name == "proj.add(1, 'b', c=2)"
    assert entry == {
        "task": "proj.add", "schedule": 30, "args": (1, "b"), "kwargs": {"c": 2},
        "options": {"queue": "q"},
    }  # fmt: skip


def test_arguments_and_options_complete_those_of_a_signature() -> None:
    sig = signature("proj.add", (1,), {"c": 2, "d": 3}, queue="slow", priority=3)
    name, entry = entry_in_code(30, sig, (4,), {"d": 5}, "named", {"queue": "fast"})
    assert name == "named"
    assert (entry["task"], entry["args"], entry["kwargs"]) == (
        "proj.add", (1, 4), {"c": 2, "d": 5},
    )  # fmt: skip
    assert entry["options"] == {"queue": "fast", "priority": 3}


def test_given_arguments_are_kept_as_they_were() -> None:
    given = {"c": 2}
    _name, entry = entry_in_code(30, "proj.add", (), given, None, {})
    given["c"] = 3
    assert entry["kwargs"] == {"c": 2}


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(TypeError, match="takes a task or its name, not 5"):
        entry_in_code(30, 5, (), {}, None, {})
