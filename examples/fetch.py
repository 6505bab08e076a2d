"""Fetch web pages: what `greenq demo` runs, and a start for a crawler or a link checker.

A worker that runs up to 500 fetches at once, and no more greenlets than the queue calls for:

    greenq worker -A fetch --autoscale 500,10

Beside it, send some and print what came back:

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
    """What is kept of an answer."""

    status: int
    bytes: int
    seconds: float


@app.task
def fetch(url: str, timeout: float = 10.0) -> Page:
    """Fetch one page; an error status, a refused connection, or too slow an answer raises."""
    began = time.monotonic()
    size = 0
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            # The timeout above is for each wait; a page that drips in for ever must end, too.
            while part := answer.read1(65536):
                size += len(part)
                if time.monotonic() - began > timeout:
                    raise TimeoutError(f"not complete after {timeout:g} s")
    except urllib.error.HTTPError as exc:
        # It carries no args: stored as it is, the result would not say which status it was.
        raise RuntimeError(f"answered {exc.code} {exc.reason}") from exc
    return {"status": answer.status, "bytes": size, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    sent = {url: fetch.delay(url) for url in sys.argv[1:]}
    for url, result in sent.items():
        print(url, result.get(timeout=60))
