"""The sender of `greenq demo`: a separate process without gevent, like a web application.

``python -m greenq.cli.demo.sender <broker URL>`` prints ``ready``, reads URLs from standard input,
one per line, and sends a fetch for each. Then it prints a line of JSON that contains how long
sending took and the ids of the tasks.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import greenq
from greenq.errors import GreenqError


def load_fetch(broker_url: str) -> Any:
    """Load ``examples/fetch.py``, connect its app to this server, and return its task `fetch`.

    Raises:
        GreenqError: the file is neither where a checkout has it nor where an installed package
            does.
    """
    package = Path(greenq.__file__).parent
    places = (package / "examples" / "fetch.py", package.parent / "examples" / "fetch.py")
    path = next((place for place in places if place.is_file()), None)
    spec = importlib.util.spec_from_file_location("fetch", path) if path is not None else None
    if spec is None or spec.loader is None:
        raise GreenqError(f"examples/fetch.py is missing next to {package}: reinstall greenq")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The demo shows the pool grow and shrink, so an idle pool keeps its size for only one second.
    module.app.conf.update(
        broker_url=broker_url, result_backend=broker_url, worker_autoscale_keepalive=1.0
    )
    return module.fetch


def main(broker_url: str) -> int:
    """Send a fetch for each URL on standard input."""
    fetch = load_fetch(broker_url)
    # Connect before the burst, since a running application would already be connected.
    fetch.app.transport.client.call("PING")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    urls = sys.stdin.read().split()
    began = time.monotonic()
    task_ids = [fetch.delay(url).id for url in urls]
    sent_s = time.monotonic() - began
    json.dump({"sent_s": sent_s, "task_ids": task_ids}, sys.stdout)
    fetch.app.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
