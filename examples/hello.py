"""The smallest app: send one task and wait for its result.

The app needs no set-up: without a broker_url, greenq starts an embedded server and keeps its data
in your home directory.

    greenq worker -A hello -l INFO
    python hello.py Ada             # in another terminal
"""

from __future__ import annotations

import sys

from greenq import Greenq

app = Greenq("hello")


@app.task
def greet(name: str) -> str:
    """Return a greeting."""
    return f"Hello, {name}!"


if __name__ == "__main__":
    who = sys.argv[1] if len(sys.argv) > 1 else "world"
    print(greet.delay(who).get(timeout=10))
