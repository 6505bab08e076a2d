"""A producer of workflows that may be killed: ``python -m tests.faults.long.producer``.

It writes the number of each workflow before it sends it and again when sending has returned.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from greenq import Greenq, Signature, chain, group
from greenq.errors import GreenqError

CHORDS = 10
HEADER = 10
STEPS = CHORDS * (HEADER + 1)
STEP_S = 0.005


def numbers(workflow: int) -> range:
    """Return the numbers of the tasks of a workflow: each header, followed by its body."""
    return range(workflow * STEPS, (workflow + 1) * STEPS)


def end_of(workflow: int) -> str:
    """Return the id of the last task of a workflow."""
    return f"workflow-{workflow}"


def build(app: Greenq, workflow: int) -> Signature:
    """Return ten chords of ten, one after another; each task knows what it must be given."""

    def step(number: int, expected: object) -> Signature:
        return app.signature("ledger.step", (number, STEP_S, expected))

    def steps() -> Iterator[Signature]:
        first, before = numbers(workflow).start, None
        for number in range(first, first + STEPS, HEADER + 1):
            header = list(range(number, number + HEADER))
            members = [step(member, before) for member in header]
            if before is None:
                members = [member.clone((None,)) for member in members]
            yield group(members)
            yield step(number + HEADER, header)
            before = number + HEADER

    return chain(*steps())


def main() -> None:
    """Send workflows from a number up to another, each until it has been sent for sure."""
    url, first, end, path, pause_s = sys.argv[1:]
    app = Greenq("producer", broker=url, set_as_current=False)
    with Path(path).open("a", encoding="ascii", buffering=1) as record:
        for workflow in range(int(first), int(end)):
            record.write(f"sending {workflow}\n")
            try:
                build(app, workflow).apply_async(task_id=end_of(workflow))
            except GreenqError as exc:
                record.write(f"failed {workflow} {type(exc).__name__}\n")
            else:
                record.write(f"sent {workflow}\n")
            time.sleep(float(pause_s))


if __name__ == "__main__":
    main()
