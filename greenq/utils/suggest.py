"""Suggestions for misspelled names."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that is most similar to `name`; None if none is similar enough.

    Args:
        cutoff: the minimum similarity, from 0 to 1.
    """
    # `difflib` is imported only here, since most processes never need it.
    difflib = importlib.import_module("difflib")
    close: list[str] = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return close[0] if close else None


def suggestion(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the end of an error message that suggests the nearest name, or an empty string."""
    near = nearest(name, known, cutoff=cutoff)
    return "" if near is None else f"; did you mean {near}?"
