"""Text for people: tables, trees, ages."""

from __future__ import annotations

import json

import pytest

from greenq.cli import show


def test_table_has_a_line_for_each_row_below_its_headings() -> None:
    assert list(show.table(("A", "LONG"), [("1", "x"), ("22", "")])) == [
        "A   LONG",
        "1   x",
        "22",
    ]
    assert list(show.table(("A", "LONG"), [])) == []


def test_table_on_a_terminal_has_colour_and_keeps_within_its_width() -> None:
    lines = list(show.table(("A", "B"), [("1", "0123456789")], color=True, width=8))

    assert lines == ["\033[1mA  B\033[0m", "1  0123…"]


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (5, ["5"]),
        (None, ["-"]),
        (True, ["true"]),
        ("two\nlines", ["two", "lines"]),
        ("", [""]),
        ([], ["(none)"]),
        ({}, ["(none)"]),
        (["a", "b"], ["- a", "- b"]),
        ({"a": 1, "b": [1, 2]}, ["a: 1", "b:", "  - 1", "  - 2"]),
        ({"a": [1]}, ["a:", "  - 1"]),
        ({"a": []}, ["a: (none)"]),
        ({"a": {"b": {"c": None}}}, ["a:", "  b:", "    c: -"]),
        ([{"a": 1, "b": 2}, {"a": 3}], ["- a: 1", "  b: 2", "- a: 3"]),
        ({"text": "x\ny"}, ["text:", "  x", "  y"]),
        ({"evil\n": "\033[2J"}, ["evil\\n: \\x1b[2J"]),
    ],
)
def test_tree_writes_each_part_on_a_line(value: object, lines: list[str]) -> None:
    assert list(show.tree(value)) == lines


def test_text_of_a_stranger_cannot_move_the_cursor() -> None:
    assert show.printable("süß ok") == "süß ok"
    assert show.printable("\033[2J\n\ud800") == "\\x1b[2J\\n\\ud800"
    assert show.text(["\033"]) == '["\\u001b"]'


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (7199, "1h"),
        (40 * 86400, "40d"),
        (None, "-"),
        ("5", "-"),
        (True, "-"),
    ],
)
def test_age_is_one_number_and_a_unit(seconds: object, shown: str) -> None:
    assert show.age(seconds) == shown


def test_json_is_one_line_whatever_the_value(capsys: pytest.CaptureFixture[str]) -> None:
    show.write_json({"error": ValueError("x\ny")})

    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"error": "ValueError('x\\ny')"}


@pytest.mark.parametrize(
    ("replies", "all_wrong"),
    [
        ({}, False),
        ({"a": {"error": "x"}}, True),
        ({"a": {"error": "x"}, "b": {"ok": 1}}, False),
        ({"a": {"error": "x", "more": 1}}, False),
        ({"a": None}, False),
    ],
)
def test_replies_are_wrong_when_all_are_errors(replies: dict[str, object], all_wrong: bool) -> None:
    assert show.all_errors(replies) is all_wrong
