"""Recorded commands of a real Celery 5.7 on Redis: what was sent, byte for byte.

A capture is one JSON object a line. The lines with ``cmd`` are commands: ``n`` is the line's
number, ``role`` who sent it. A text that occurred before is ``{"same": [n, path], "before",
"after"}``, where the path leads to the first occurrence, and bytes that are no text are
``{"b64"}``. Paths in tracebacks were shortened after the recording.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

CAPTURES = Path(__file__).with_name("captures")


class Command(NamedTuple):
    """One recorded command, its arguments and its reply as bytes."""

    capture: str
    n: int
    args: tuple[bytes, ...]
    reply: Any

    @property
    def label(self) -> str:
        """Name the command in a test's id."""
        return f"{self.capture}-{self.n}"


def names() -> list[str]:
    """List the captures."""
    return sorted(path.stem for path in CAPTURES.glob("*.jsonl"))


@cache
def commands(capture: str) -> tuple[Command, ...]:
    """Read all commands of one capture, shortened texts put back."""
    texts: dict[tuple[int, str], str] = {}
    found = []
    with (CAPTURES / f"{capture}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            number = record.get("n", 0)
            # Every field may be the first occurrence that a later line refers to.
            whole = {
                field: _resolve(record[field], number, field, texts)
                for field in ("cmd", "reply", "push", "keys")
                if field in record
            }
            if "cmd" in whole:
                args = tuple(_to_bytes(arg) for arg in whole["cmd"])
                found.append(Command(capture, number, args, _to_bytes(whole.get("reply"))))
    return tuple(found)


def sent(*verbs: str) -> list[Command]:
    """Collect the commands of some kinds from all captures."""
    wanted = {verb.encode() for verb in verbs}
    return [command for name in names() for command in commands(name) if command.args[0] in wanted]


def _resolve(value: Any, number: int, path: str, texts: dict[tuple[int, str], str]) -> Any:
    if isinstance(value, dict) and "same" in value:
        first = texts[value["same"][0], value["same"][1]]
        value = value.get("before", "") + first + value.get("after", "")
    if isinstance(value, str):
        texts[number, path] = value
        return value
    if isinstance(value, dict):
        return {k: _resolve(v, number, f"{path}.{k}", texts) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, number, f"{path}.{i}", texts) for i, v in enumerate(value)]
    return value


def _to_bytes(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"])
    if isinstance(value, list):
        return [_to_bytes(item) for item in value]
    return value.encode() if isinstance(value, str) else value
