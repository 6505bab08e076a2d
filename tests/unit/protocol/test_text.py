"""Texts from outside in log lines and on terminals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.protocol.text import cut, listed, printable, record


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain naïve 日本", "plain naïve 日本"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\r\x85\u2028", r"a\nb\r\x85\u2028"),
        ("\x9b2J\u202e", r"\x9b2J\u202e"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_acts_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_is_printable(text: str) -> None:
    assert printable(text).isprintable()


@given(st.text(st.characters() | st.sampled_from("\n\t\x1b")))
def test_record_has_indented_lines_and_tabs_but_nothing_else(text: str) -> None:
    first, *others = record(text).split("\n")

    assert first.replace("\t", "").isprintable()
    for line in others:
        assert line.startswith("    ")
        assert line.replace("\t", "").isprintable()
    assert len(others) == text.count("\n")


def test_record_is_no_longer_than_a_log_can_bear() -> None:
    assert len(record("x" * 10_000_000)) < 101_000
    assert record("x" * 10_000_000).endswith("… (9,900,000 characters more)")


def test_cut_says_how_much_is_left_out() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "abc… (1 characters more)"


def test_listed_counts_the_rest() -> None:
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
