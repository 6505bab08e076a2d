"""Write docs/settings.md from greenq.config.settings, or compare it if ``--check`` is given.

Run as ``python docs/make_settings.py``.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from greenq.config.celery_names import SETTINGS
from greenq.config.settings import (
    SECTIONS,
    ResultTransportOptions,
    RetryPolicy,
    Section,
    TransportOptions,
)

TARGET = Path(__file__).with_name("settings.md")

# Settings whose value is a mapping: each mapping has its own table after the sections.
PARTS: dict[str, type[Section]] = {
    "broker_transport_options": TransportOptions,
    "result_backend_transport_options": ResultTransportOptions,
    "task_publish_retry_policy": RetryPolicy,
}

INTRODUCTION = """\
% Written by docs/make_settings.py from greenq/config/settings.py: change the fields there.

# Settings

```python
app.config_from_object("proj.settings")  # broker_url = ..., in a module
app.config_from_object("django.conf:settings", namespace="CELERY")  # CELERY_BROKER_URL = ...
app.conf.update(task_acks_late=False)
app.conf["timezone"]
```

The names are Celery's. A setting described as "greenq's own" does not exist in Celery; where a
default differs, Celery's is named. Unknown names and wrong values are refused, and one error lists
all of them. None is accepted for settings whose default in Celery is None.

Settings come from a mapping, a module, an object or a Django settings file, and from the
environment: `GREENQ_BROKER_URL` is `broker_url`, and so on. In the environment, truth values are
true, false, 1 or 0, lists are separated by commas or are JSON, mappings are JSON, and None is
`none`. Durations are in seconds; in Python, a `timedelta` is also accepted. `CELERY_BROKER_URL` and
`CELERY_RESULT_BACKEND` are also read, unless the addresses are set elsewhere. Settings in code take
precedence.

A name that looks like a setting is never silently ignored:

- Settings in another spelling (`BROKER_URL` in a module, `CELERY_ACKS_LATE`) are refused, and the
  error names the right spelling. A namespace that no name begins with is also refused.
- Other names in a module or behind a namespace, and other `GREENQ_` variables, cause a warning. If
  such a name is almost that of a setting, it is refused. Variables that Kubernetes sets for a
  service called greenq are ignored.

If `broker_url` is not set at all, greenq uses an embedded server. Each combination of an app's name
and directory has its own. If no terminal is attached, a warning names this server.
"""

FOREIGN = """\
Each of these settings is accepted with Celery's own default. With another value, a setting is
either ignored, with a warning when a worker starts, or refused.
"""


def text() -> str:
    """Return the whole page."""
    tables = [_table(part.capitalize(), section) for part, section in SECTIONS.items()]
    tables += [_table(f"`{name}`", section) for name, section in PARTS.items()]
    return "\n".join([INTRODUCTION, *tables, _foreign()])


def _foreign() -> str:
    """Return the table of Celery's other settings, with one row for each advice."""
    rows: dict[tuple[str, bool], list[str]] = {}
    for name, about in SETTINGS.items():
        rows.setdefault((about.advice, about.harmless), []).append(f"`{name}`")
    lines = [
        f"| {', '.join(names)} | {'warning' if harmless else 'refused'} | {advice} |"
        for (advice, harmless), names in rows.items()
    ]
    head = ["| names | other values | why |", "| --- | --- | --- |"]
    return "\n".join(["## Celery's other settings", "", FOREIGN, *head, *lines, ""])


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
