"""What the texts of options mean."""

from __future__ import annotations

import argparse

import pytest

from greenq.cli.argument_types import lifetime, memory


@pytest.mark.parametrize(
    ("text", "kib"), [("200000", 200_000), ("5K", 5), ("512M", 524_288), ("2g", 2_097_152)]
)
def test_memory_is_in_kib_or_has_a_unit(text: str, kib: int) -> None:
    assert memory(text) == kib


@pytest.mark.parametrize("text", ["", "M", "0", "0M", "-5", "1.5G", "5T", "five"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not an amount of memory"):
        memory(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("0.5", 0.5), ("30s", 30.0), ("10m", 600.0), ("2h", 7200.0)]
)
def test_lifetime_is_in_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert lifetime(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "5y", "long"])
def test_what_is_no_lifetime_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        lifetime(text)
