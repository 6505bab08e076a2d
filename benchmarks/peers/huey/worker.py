"""huey's consumer, with the standard library patched first, as its documentation asks."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from huey.bin.huey_consumer import consumer_main  # noqa: E402

if __name__ == "__main__":
    consumer_main()
