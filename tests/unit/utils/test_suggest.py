"""Suggestions: the nearest name if one is near enough."""

from __future__ import annotations

import pytest

from greenq.utils.suggest import nearest, suggestion

NAMES = ("add", "subtract", "multiply")


@pytest.mark.parametrize(
    ("name", "near"), [("ad", "add"), ("multipyl", "multiply"), ("xyz", None), ("", None)]
)
def test_nearest_name_is_found_if_it_is_near_enough(name: str, near: str | None) -> None:
    assert nearest(name, NAMES) == near


def test_cutoff_decides_how_near_that_is() -> None:
    assert nearest("subtr", NAMES, cutoff=0.6) == "subtract"
    assert nearest("subtr", NAMES, cutoff=0.9) is None


def test_suggestion_ends_a_message_or_is_empty() -> None:
    assert suggestion("ad", NAMES) == "; did you mean add?"
    assert suggestion("xyz", NAMES) == ""
