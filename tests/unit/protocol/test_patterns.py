"""Patterns of node names: what they match, and that none takes long."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.protocol.patterns import MOST_CHARS, glob_matches, regex_matches

NAME = "celery@" + "a" * 57


@given(
    st.text("ab-!]@^", max_size=8),
    st.lists(
        st.sampled_from(
            ["*", "?", "a", "b", "[", "]", "!", "-", "[ab]", "[!a]", "[a-b]", "[]]", "^"]
        ),
        max_size=8,
    ).map("".join),
)
def test_glob_matches_what_the_standard_library_says(name: str, pattern: str) -> None:
    assert glob_matches(name, pattern) is fnmatch.fnmatchcase(name, pattern)


def steps_of(name: str, pattern: str) -> float:
    before_s = time.process_time()
    assert not glob_matches(name, pattern)
    return time.process_time() - before_s


def test_many_stars_take_no_longer_than_the_lengths_multiplied() -> None:
    name = "a" * 255
    pattern = "*a" * 99 + "*b"

    assert steps_of(name, pattern) < 1


@pytest.mark.parametrize(
    ("pattern", "is_for"),
    [
        ("celery", True),
        ("c.*@a+$", True),
        ("(celery|mail)@", True),
        ("(?:celery|mail)@a*$", True),
        (r"\w+@", True),
        ("[*+?]", False),
        (r"\*", False),
        ("mail", False),
        (".*?@", True),
        ("b|c", True),
    ],
)
def test_plain_regular_expression_matches_from_the_start(pattern: str, is_for: bool) -> None:
    assert regex_matches(NAME, pattern) is is_for


@pytest.mark.parametrize(
    "pattern",
    [
        "^((((.?)*)*)*)*X$",
        "(a*)*b",
        "(a|a)*b",
        "(a|aa)+b",
        "(a{1,9}){1,9}b",
        "(?x)(a|a) *b",
        "(?:a+)+b",
        "(?=(a+))b",
        ".*.*.*.*.*.*X",
        "a?" * 60 + "a" * 60,
        "(|||)" * 20 + "X",
        r"[\]](a|a)*b",
        "[]](a|a)*b",
        "[^]](a|a)*b",
        "x" * (MOST_CHARS + 1),
        "(",
        "a{99999999999999999999}",
        "(" * 5000 + ")" * 5000,
    ],
)
def test_regular_expression_that_may_take_long_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        regex_matches(NAME, pattern)


@given(st.text("a()|*+?[]^{}1,\\.x:", max_size=30))
def test_what_is_not_refused_is_quick(pattern: str) -> None:
    before_s = time.process_time()
    try:
        regex_matches(NAME, pattern)
    except ValueError:
        return
    assert time.process_time() - before_s < 2
