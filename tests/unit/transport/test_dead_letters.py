"""How a dead letter is written and read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from greenq.transport.dead_letters import read_letter, write_letter

NOW = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)


def written(raw: bytes, now: datetime = NOW) -> bytes:
    return write_letter(raw, reason="poison", worker="w@h", now=now).encode()


def changed(**fields: object) -> bytes:
    return json.dumps({**json.loads(written(b"x")), **fields}).encode()


@pytest.mark.parametrize("raw", [b"", b"\xff\x00", b"{}", b'{"headers": {"id": "a"}}'])
def test_letter_that_was_written_reads_the_same(raw: bytes) -> None:
    letter = read_letter("mail", written(raw))

    assert (letter.queue, letter.raw, letter.element) == ("mail", raw, written(raw))
    assert (letter.reason, letter.worker, letter.buried_at) == ("poison", "w@h", NOW)


def test_time_is_read_as_utc() -> None:
    zone = timezone(timedelta(hours=2))

    letter = read_letter("mail", written(b"", NOW.astimezone(zone)))

    assert (letter.buried_at, letter.buried_at.tzinfo) == (NOW, UTC)


def test_id_is_the_task_s_or_one_made_of_the_letter_s_bytes() -> None:
    named = read_letter("mail", written(b'{"headers": {"id": "a", "task": "t"}}'))
    unnamed = read_letter("mail", written(b"\xff"))
    other = read_letter("mail", written(b"\xfe"))

    assert (named.id, named.task) == ("a", "t")
    assert unnamed.id.startswith("raw-")
    assert unnamed.id == read_letter("celery", written(b"\xff")).id
    assert unnamed.id != other.id


@pytest.mark.parametrize(
    "element",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"17",
        b"[" * 100_000,
        changed(raw=5),
        changed(raw="no base64"),
        changed(buried_at="yesterday"),
        changed(buried_at="0001-01-01T00:00:00+14:00"),
    ],
    ids=range(10),
)
def test_element_that_somebody_else_wrote_is_a_letter_in_itself(element: bytes) -> None:
    letter = read_letter("mail", element)

    assert letter.reason.startswith("not a dead letter of greenq: ")
    assert (letter.raw, letter.element, letter.task_id) == (element, element, None)
    assert letter.buried_at.tzinfo is UTC


def test_of_unreadable_bytes_and_of_too_large_messages_the_beginning_is_kept() -> None:
    named = b'{"headers": {"id": "a", "task": "t"}, "body": "%b"}' % (b"x" * 200_000)

    def kept(raw: bytes, most_bytes: int) -> tuple[bool, int, int]:
        text = write_letter(raw, reason="r", worker="w", now=NOW, most_bytes=most_bytes)
        letter = read_letter("mail", text.encode())
        return letter.is_cut, len(letter.raw), letter.size

    assert kept(named, 300_000) == (False, len(named), len(named))
    assert kept(named, 100_000) == (True, 65_536, len(named))
    assert kept(bytes(65_536), 300_000) == (False, 65_536, 65_536)
    assert kept(bytes(65_537), 300_000) == (True, 65_536, 65_537)


def test_texts_of_others_in_a_letter_are_cut() -> None:
    raw = json.dumps({"headers": {"id": "i" * 5000, "task": "t" * 5000}}).encode()
    text = write_letter(raw, reason="r" * 10_000, worker="w", now=NOW)
    letter = read_letter("mail", text.encode())

    assert (len(letter.reason), len(letter.task or ""), len(letter.id)) < (2100, 1100, 1100)
