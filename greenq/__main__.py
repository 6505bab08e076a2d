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
        # Skip the interpreter's final garbage collection, which frees nothing useful and takes a
        # tenth of a short command's time.
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
