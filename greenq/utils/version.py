"""The version of greenq: below everything, so that every module may name it."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
