"""What numbers, texts and JSON from elsewhere may be."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from greenq.errors import DecodeError
from greenq.protocol import limits

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (limits.COUNT, [0, 1, 2**53], [-1, 2**53 + 1, 10**400, 0.0, 1.5, NAN, True, "1", None, []]),
        (limits.CLOCK, [0, 2**62 - 1], [-1, 2**62, 1.0, NAN]),
        (limits.SECONDS, [0, 0.0, 0.5, 10**9], [-1, -0.5, NAN, INF, -INF, 10**400, True, "1"]),
        (limits.INTERVAL, [1e-9, 1, 10**9], [0, 0.0, -1, NAN, INF]),
        (limits.TIMESTAMP, [0, -5.5, 1.7e9], [1e12, -1e12, NAN, INF, 10**400, "now"]),
        (limits.NAME, ["", "x", "é" * 1000, "\ud800"], ["x" * 1001, 5, None, b"x", [], NAN]),
        (limits.KEY, ["", "é"], ["\ud800", "x" * 1001, None]),
        (limits.TIMELIMIT, [[None, None], (1, 2.5), [0, 0]], [[1], [1, 2, 3], [NAN, None], "12"]),
    ],
)
def test_a_rule_takes_what_is_right_and_nothing_else(
    rule: Any, right: list[Any], wrong: list[Any]
) -> None:
    assert [value for value in right if rule.wrong(value)] == []
    assert [value for value in wrong if not rule.wrong(value)] == []
    # However large the value, what is said of it is short.
    assert all(len(rule.wrong(value)) < 150 for value in wrong)


def test_what_is_refused_is_named() -> None:
    fields = {"status": "FAILURE", "task_id": "i", "retries": NAN}
    assert limits.refusal(fields, limits.RESULT).startswith("retries is float, not a whole number")
    with pytest.raises(DecodeError, match=r"timelimit\[1\] is nan"):
        limits.require("timelimit", limits.TIMELIMIT, [1, NAN])


def _items(value: object) -> int:
    """Count commas and opening brackets, as JSON writes them."""
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(_items, value))
    if isinstance(value, dict):
        return 1 + max(0, len(value) - 1) + sum(map(_items, value.values()))
    return 0


def _value(chance: random.Random, depth: int) -> Any:
    kind = chance.randrange(8 if depth else 5)
    if kind < 3:
        return "".join(chance.choices('a,[{"\\\n é', k=chance.randrange(6)))
    if kind < 5:
        return chance.choice([1, None, 2.5])
    if kind < 7:
        return [_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    keys = ["".join(chance.choices('k,"\\{', k=n)) for n in range(chance.randrange(4))]
    return {key: _value(chance, depth - 1) for key in keys}


def test_values_are_counted_and_signs_in_texts_are_not() -> None:
    chance = random.Random(5)
    for _ in range(2000):
        value = [_value(chance, 4) for _ in range(4)]
        for ascii_only in (True, False):
            data = json.dumps(value, ensure_ascii=ascii_only).encode()
            count = _items(value)
            assert not limits.has_more_items(data, count), data
            assert limits.has_more_items(data, count - 1), data


def test_dense_json_is_refused_and_a_long_text_is_not() -> None:
    dense, text = b"[" + b"[]," * 300_000 + b"1]", json.dumps([",[{" * 300_000]).encode()
    limits.check_json(text, 8 << 20, "it")
    with pytest.raises(DecodeError, match="more than 131072 values"):
        limits.check_json(dense, 8 << 20, "it")
    with pytest.raises(DecodeError, match="exceeds 100 bytes"):
        limits.check_json(text, 100, "it")
