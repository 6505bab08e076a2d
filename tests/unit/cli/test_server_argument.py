"""``-b`` and ``--result-backend``: an address, or a file that holds it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from greenq.cli import argument_types


def test_an_address_is_taken_as_it_is() -> None:
    assert argument_types.server("redis://:p@h/0") == "redis://:p@h/0"


def test_an_address_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "broker").write_text("redis://:p@h/0\n")

    assert argument_types.server(f"@{tmp_path}/broker") == "redis://:p@h/0"


def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'/nowhere/x' cannot be read: No such"):
        argument_types.server("@/nowhere/x")
