"""Which signatures in a message are accepted."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.protocol.message import TaskMessage
from greenq.protocol.signature import MOST_DEPTH, check_following, wrong_signature


def sig(task: Any = "t", kind: Any = None, **fields: Any) -> dict[str, Any]:
    return {
        "task": task, "args": [], "kwargs": {}, "options": {}, "subtask_type": kind,
        "immutable": False, **fields,
    }  # fmt: skip


def nested(depth: int) -> dict[str, Any]:
    found = sig()
    for _ in range(depth - 1):
        found = sig("celery.chain", "chain", kwargs={"tasks": [found]})
    return found


GROUP = sig("celery.group", "group", kwargs={"tasks": [sig(), sig()]})
RIGHT = [
    sig(),
    GROUP,
    sig("celery.chain", "chain", kwargs={"tasks": [sig(), GROUP]}),
    sig("celery.chord", "chord", kwargs={"header": [sig()], "body": sig(), "kwargs": {}}),
    sig("celery.chord", "chord", kwargs={"header": GROUP, "body": sig()}),
    sig("celery.chunks", kwargs={"task": sig(), "it": [[1]], "n": 2}),
    sig(options={"link": sig(), "link_error": [sig()], "chain": [sig()], "task_id": "x"}),
    sig(options={"task_id": None, "group_index": None, "chord": None}),
    sig(options={"task_id": "x", "group_id": "g", "group_index": 3}),
    nested(MOST_DEPTH),
]


@pytest.mark.parametrize("signature", RIGHT)
def test_signatures_of_all_kinds_are_accepted(signature: dict[str, Any]) -> None:
    assert wrong_signature(signature) == ""


WRONG: list[tuple[Any, str]] = [
    ("text", "it is str, not an object"),
    ({}, "it has no task"),
    (sig(7), "task is int, not text"),
    (sig(args="x"), "args is str, not list or tuple"),
    (sig(kwargs=[]), "kwargs is list, not dict"),
    (sig(options=None), "options is NoneType, not dict"),
    (sig(kind="other"), "its subtask_type 'other' is unknown"),
    (sig(kind="chain"), "a chain has no list of tasks"),
    (sig(kind="group", kwargs={"tasks": {}}), "a group has no list of tasks"),
    (sig(kind="chord", kwargs={"body": sig()}), "a chord has no header"),
    (sig(kind="chord", kwargs={"header": []}), "it is NoneType, not an object"),
    (sig(kind="chord", kwargs={"header": [], "body": sig(), "kwargs": 3}), "are not an object"),
    (sig("celery.chunks", kwargs={"task": sig(), "it": [1], "n": 0}), "chunks need"),
    (sig(options={"task_id": 7}), "its option task_id is int"),
    (sig(options={"task_id": "x" * 1001}), "its option task_id is a text of 1,001"),
    (sig(options={"group_index": -1}), "its option group_index is -1"),
    (sig(options={"chain": "abc"}), "its option chain"),
    (sig(options={"link": [sig(), 4]}), "it is int, not an object"),
    (sig(kind="group", kwargs={"tasks": [sig(options={"chord": sig(3)})]}), "task is int"),
    (nested(MOST_DEPTH + 1), "nested more than 100 levels deep"),
]


BAD_PLACES = [
    {"group_id": 7},
    {"group_id": "x" * 1001},
    {"group_id": "\ud800"},
    {"group_index": True},
    {"group_index": 1.0},
    {"group_index": -1},
]


@pytest.mark.parametrize("options", BAD_PLACES)
def test_a_wrong_place_in_a_group_is_refused(options: dict[str, Any]) -> None:
    _, reason = check_following(TaskMessage(task="t", id="i", chord=sig(options=options)))

    assert f"its option {next(iter(options))} is" in reason


@pytest.mark.parametrize(("signature", "reason"), WRONG)
def test_a_wrong_signature_is_named(signature: Any, reason: str) -> None:
    assert reason in wrong_signature(signature)


def test_what_is_sound_in_a_message_is_kept() -> None:
    message = TaskMessage(
        task="t", id="x", callbacks=[sig()], chain=[sig(), 3], chord=sig(), group="g"
    )

    sound, reason = check_following(message)

    assert reason == "chain[1] is not a signature: it is int, not an object"
    assert (sound.chain, sound.callbacks, sound.chord) == (None, [sig()], sig())


def test_a_right_message_is_left_as_it_is() -> None:
    message = TaskMessage(task="t", id="x", callbacks=[sig()], chord=GROUP, group="g")
    assert check_following(message) == (message, "")
