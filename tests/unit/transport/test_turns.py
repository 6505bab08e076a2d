"""The turns of queues with weights."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from greenq.transport.fetch import turns_of

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10), max_size=6)


def test_turns_are_spread() -> None:
    assert turns_of({}) == ()
    assert turns_of({"a": 1, "b": 1}) == ("a", "b")
    assert turns_of({"a": 5, "b": 5}) == ("a", "b")
    assert turns_of({"a": 3, "b": 1}) == ("a", "a", "b", "a")


@given(WEIGHTS)
def test_each_queue_has_its_share_of_any_stretch(weights: dict[str, int]) -> None:
    turns = turns_of(weights)
    whole = Counter(turns)
    total = sum(weights.values())

    assert set(turns) == set(weights)
    assert all(whole[name] * total == weight * len(turns) for name, weight in weights.items())
    # At no time is a queue ahead of its share, or behind, by as many turns as there are queues.
    for end in range(len(turns)):
        part = Counter(turns[:end])
        assert all(
            abs(part[name] - end * whole[name] / len(turns)) < len(weights) for name in weights
        )
