"""`greenq dead`: what it picks and how it shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from greenq.cli import build_parser
from greenq.cli.dead import Wanted, description, row, total
from greenq.transport.dead_letters import DeadLetter

NOW = datetime(2031, 1, 2, tzinfo=UTC)
LETTER = DeadLetter(
    queue="mail",
    reason="Unregistered task",
    buried_at=NOW - timedelta(minutes=10),
    worker="w@h",
    task_id="id-1",
    task="mail.send",
    raw=b'{"headers": {"task": "mail.send"}, "properties": {}, "body": ""}',
    element=b"{}",
)
POISON = replace(LETTER, task_id=None, task=None, raw=b"\xff", reason="not JSON")


@pytest.mark.parametrize(
    ("wanted", "letters"),
    [
        (Wanted(), [LETTER, POISON]),
        (Wanted(task="mail.send"), [LETTER]),
        (Wanted(task="mail.*"), [LETTER]),
        (Wanted(task="*"), [LETTER, POISON]),
        (Wanted(task="send"), []),
        (Wanted(task="Mail.*"), []),
        (Wanted(reason="unregistered"), [LETTER]),
        (Wanted(reason="json"), [POISON]),
        (Wanted(id="id-1"), [LETTER]),
        (Wanted(id=POISON.id), [POISON]),
        (Wanted(id="id"), []),
        (Wanted(after=NOW - timedelta(minutes=11)), [LETTER, POISON]),
        (Wanted(after=NOW - timedelta(minutes=9)), []),
        (Wanted(task="mail.*", reason="json"), []),
    ],
)
def test_letter_is_wanted_when_all_that_is_asked_for_is_so(
    wanted: Wanted, letters: list[DeadLetter]
) -> None:
    assert list(filter(wanted, [LETTER, POISON])) == letters


def test_row_tells_age_queue_task_id_and_reason() -> None:
    assert row(LETTER, NOW) == ("10m", "mail", "mail.send", "id-1", "Unregistered task")
    assert row(replace(POISON, task_id="x"), NOW)[2:4] == ("-", "x")


@pytest.mark.parametrize(
    ("counts", "shown", "text"),
    [
        ({}, 0, "no dead letters"),
        ({"mail": 1}, 1, "1 dead letter (mail 1)"),
        ({"mail": 1, "web": 1200}, 1201, "1,201 dead letters (web 1,200, mail 1)"),
        ({"mail": 150}, 100, "150 dead letters (mail 150); 100 shown, --limit shows more"),
    ],
)
def test_count_is_told_by_queue(counts: dict[str, int], shown: int, text: str) -> None:
    assert total(Counter(counts), shown) == text


def test_text_of_a_stranger_cannot_move_the_cursor() -> None:
    assert "\n" not in row(replace(LETTER, reason="a\nb"), NOW)[-1]


def test_description_tells_headers_and_bytes() -> None:
    text = "\n".join(description(LETTER))

    assert "reason     Unregistered task" in text
    assert '"task": "mail.send"' in text
    assert repr(LETTER.raw) in text


def test_description_of_poison_says_why_it_cannot_be_read_and_is_bounded() -> None:
    text = "\n".join(description(replace(POISON, raw=b"\xff" * 1_000_000)))

    assert "unreadable:" in text
    assert "998,000 more bytes; --json shows all" in text
    assert len(text) < 10_000


@pytest.mark.parametrize(
    ("text", "age"),
    [("30s", timedelta(seconds=30)), ("10m", timedelta(minutes=10)), ("7d", timedelta(days=7))],
)
def test_since_is_read(text: str, age: timedelta) -> None:
    assert build_parser().parse_args(["dead", "list", "--since", text]).since == age


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["list", "--since", "10"], "'10' is not an age"),
        (["list", "--since", "m"], "'m' is not an age"),
        (["list", "--since", "9999999999999d"], "is too long ago"),
        (["list", "--limit", "0"], "'0' is not a whole number"),
        (["lst"], "invalid choice: 'lst'"),
        ([], "required: action"),
    ],
)
def test_wrong_options_are_explained(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["dead", *argv])

    assert ended.value.code == 2
    assert told in capsys.readouterr().err
