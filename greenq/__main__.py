"""The ``greenq`` command."""

from __future__ import annotations

import gc
import sys

from greenq import cli


def main() -> int:
    """Run the command line as a process of its own."""
    try:
        return cli.main()
    finally:
        # At its end the interpreter would look through all modules for garbage, in vain: a tenth of
        # what a short command takes.
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
