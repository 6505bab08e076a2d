"""The ``greenq`` command."""

from __future__ import annotations

import sys

from greenq.cli import main

if __name__ == "__main__":
    sys.exit(main())
