"""Rate limits as they are written."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.protocol.rate import parse_rate


@pytest.mark.parametrize(
    ("rate", "a_second"),
    [
        ("10", 10.0),
        ("10/s", 10.0),
        ("90/m", 1.5),
        ("1/h", 1 / 3600),
        ("0.5/s", 0.5),
        (" 10 / m ", 10 / 60),
        (7, 7.0),
        (0.25, 0.25),
        (None, None),
        ("", None),
        (0, None),
        ("0", None),
        ("0/m", None),
    ],
)
def test_rate_is_read(rate: Any, a_second: float | None) -> None:
    assert parse_rate(rate) == a_second


@pytest.mark.parametrize("rate", ["fast", "10/d", "10/", "/s", "-1/s", "nan", "inf/s", "1/s/s", -3])
def test_what_is_no_rate_is_refused_with_an_example(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"rate limit .*: expected .*'100/m'"):
        parse_rate(rate)
