"""Fetch web pages: the task of `greenq demo`, and a starting point for a crawler or link checker.

Start a worker that runs up to 500 fetches at once, with no more greenlets than the queue needs:

    greenq worker -A fetch --autoscale 500,10

In another terminal, send some URLs and print the results:

    python fetch.py https://example.org https://www.python.org
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from typing import TypedDict

from greenq import Greenq

app = Greenq("fetch")


class Page(TypedDict):
    """The stored part of a response."""

    status: int
    bytes: int
    seconds: float


@app.task
def fetch(url: str, timeout: float = 10.0) -> Page:
    """Fetch one page; raise on an error status, a refused connection or a slow response."""
    began = time.monotonic()
    size = 0
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            # The timeout above applies to each wait, so a page that trickles in forever needs
            # another limit.
            while part := answer.read1(65536):
                size += len(part)
                if time.monotonic() - began > timeout:
                    raise TimeoutError(f"not complete after {timeout:g} s")
    except urllib.error.HTTPError as exc:
        # An HTTPError has no args, so a result that stored this error would not show the status.
        raise RuntimeError(f"answered {exc.code} {exc.reason}") from exc
    return {"status": answer.status, "bytes": size, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    sent = {url: fetch.delay(url) for url in sys.argv[1:]}
    for url, result in sent.items():
        print(url, result.get(timeout=60))
