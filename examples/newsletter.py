"""Fan-out: one task sends many others, each of which delivers one mail.

A bad address makes only its own task fail.

A pause stands in for the mail server; replace the pause with calls of smtplib.

    greenq worker -A newsletter --autoscale 200,1
    python newsletter.py 1000       # in another terminal: a thousand mails
"""

from __future__ import annotations

import random
import sys
import time

from greenq import Greenq

app = Greenq("newsletter")


@app.task
def deliver(address: str, subject: str) -> str:
    """Deliver one mail, which takes about a tenth of a second."""
    if "@" not in address:
        raise ValueError(f"{address!r} is not an address")
    time.sleep(random.uniform(0.05, 0.15))
    return f"{subject} -> {address}"


@app.task
def publish(subject: str, addresses: list[str]) -> list[str]:
    """Send `deliver` for each address; return the ids, since a task must not wait for others."""
    return [deliver.delay(address, subject).id for address in addresses]


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    readers = [f"reader{number}@example.org" for number in range(count - 1)] + ["nobody"]
    began = time.monotonic()
    task_ids = publish.delay("News", readers).get(timeout=60)
    results = [app.AsyncResult(task_id) for task_id in task_ids]
    for result in results:
        result.get(timeout=60, propagate=False)
    delivered = sum(result.successful() for result in results)
    print(f"{delivered} of {count} delivered in {time.monotonic() - began:.1f} s")
    print("failed:", *(repr(result.result) for result in results if result.failed()))
