"""The ``greenq`` command."""

from __future__ import annotations

import gc
import importlib
import sys


def main() -> int:
    """Run the command and return its exit code."""
    try:
        if sys.argv[1:2] == ["health"]:
            # `health` is called every few seconds, so do not load the other commands, which would
            # take longer.
            code: int = importlib.import_module("greenq.utils.probe").main(sys.argv[2:])
        else:
            code = importlib.import_module("greenq.cli").main()
        return code
    finally:
        # Skip the interpreter's final garbage collection, which frees nothing useful and accounts
        # for a tenth of a short command's run time.
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
