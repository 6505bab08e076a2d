"""The version of greenq, in a module below all others, so that every module can import it."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
