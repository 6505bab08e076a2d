"""Takes one message after another and announces it; no task runs."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import redis  # noqa: E402

from benchmarks.peer import Surroundings  # noqa: E402


def main() -> None:
    """Take messages forever."""
    client = redis.Redis.from_url(Surroundings.read().url)
    while True:
        message = client.blmove("floor", "floor.taken", 0, "RIGHT", "LEFT")
        client.publish("floor.done", message)


if __name__ == "__main__":
    main()
