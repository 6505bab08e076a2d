"""Writes docs/settings.md from the fields of greenq.config; with ``--check`` only compares.

Run as ``python docs/make_settings.py``.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from greenq.config import (
    SECTIONS,
    ResultTransportOptions,
    RetryPolicy,
    Section,
    TransportOptions,
)

TARGET = Path(__file__).with_name("settings.md")

# Mappings inside a setting, each with a table of its own after the sections.
PARTS: dict[str, type[Section]] = {
    "broker_transport_options": TransportOptions,
    "result_backend_transport_options": ResultTransportOptions,
    "task_publish_retry_policy": RetryPolicy,
}

INTRODUCTION = """\
% Written by docs/make_settings.py from greenq/config.py: change the fields there.

# Settings

The names are Celery's. A setting that says "greenq's own" has no twin there; where a default
differs, Celery's is named. Unknown names and wrong values are refused, all at once.

Settings come from a mapping, a module, an object or a Django settings file, and from the
environment: `GREENQ_BROKER_URL` is `broker_url`, and so on. In the environment, truth values are
true, false, 1 or 0, lists are separated by commas or are JSON, mappings are JSON, and None is
`none`. Durations are seconds; from Python a `timedelta` serves as well.
"""


def text() -> str:
    """Return the whole page."""
    tables = [_table(part.capitalize(), section) for part, section in SECTIONS.items()]
    tables += [_table(f"`{name}`", section) for name, section in PARTS.items()]
    return "\n".join([INTRODUCTION, *tables])


def _table(title: str, section: type[Section]) -> str:
    about = (section.__doc__ or "").split("\n", 1)[0]
    _, _, after_name = about.partition("`: ")
    about = after_name[:1].upper() + after_name[1:] if after_name else about
    rows = [_row(each) for each in dataclasses.fields(section)]
    head = ["| name | default | unit | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {title}", "", about, "", *head, *rows, ""])


def _row(each: dataclasses.Field[object]) -> str:
    default = "see below" if each.name in PARTS else f"`{each.default!r}`"
    cells = [f"`{each.name}`", default, each.metadata["unit"], each.metadata["doc"]]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def main() -> int:
    """Write the page, or compare it; the exit code says whether it is up to date."""
    wanted = text()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(wanted, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == wanted:
        return 0
    print("docs/settings.md is not up to date: run python docs/make_settings.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
