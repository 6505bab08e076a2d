"""Django on PostgreSQL, which has 100 connections: counts failures and connections left open.

    python -m benchmarks.django_load [--tasks 10000] [--celery-tasks 2000]

Runs the example project's worker three times: with 200 greenlets, autoscaled to 500 and back, and
with tasks that leave data behind next to tasks that look for it. Then runs Celery's gevent worker
with the same tasks. Exits with an error if greenq's tasks fail more often than Celery's, if a
connection is still open two seconds after the last task, or if a task has seen another task's data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.postgres import MAX_CONNECTIONS, Postgres, postgres
from tests.servers import APPS, ROOT, Process, Server, valkey

EXAMPLE = ROOT / "examples" / "django_shop"
SETTLED_S = 2.0

# Sends tasks and waits for all of them; prints how long that took, and what they returned or
# raised.
SENDER = """
import json, os, sys, time
from collections import Counter
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
import django
django.setup()
from orders import tasks
if {extra}:
    import django_tasks
began = time.monotonic()
results = [{call} for n in range({count})]
values = [result.get(timeout=900, propagate=False) for result in results]
took = time.monotonic() - began
failures = Counter(str(v)[-70:] for v in values if isinstance(v, BaseException))
seen = sum(1 for v in values if isinstance(v, list) and v)
print(json.dumps({{"seconds": round(took, 1), "failures": failures, "seen": seen}}))
"""

# The replacements that turn the example into a Celery project.
TO_CELERY = {
    "shop/__init__.py": [("shop.greenq", "shop.celery")],
    "shop/greenq.py": [
        ("from greenq import Greenq", "from celery import Celery"),
        (
            'Greenq("shop")',
            'Celery("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])',
        ),
        ('"GREENQ"', '"CELERY"'),
    ],
    "shop/settings.py": [("\nGREENQ_", "\nCELERY_")],
    "orders/tasks.py": [("from greenq import", "from celery import")],
}


def celery_project(folder: Path) -> Path:
    """Copy the example and change its imports and prefixes."""
    project = folder / "celery_shop"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in TO_CELERY.items():
        path = project / name
        text = path.read_text("utf-8")
        for old, new in changes:
            assert old in text, (name, old)
            text = text.replace(old, new)
        path.write_text(text, "utf-8")
    (project / "shop" / "greenq.py").rename(project / "shop" / "celery.py")
    return project


class Bench:
    """A database, a queue server, and workers."""

    def __init__(self, database: Postgres, server: Server, folder: Path) -> None:
        """Use running servers; `folder` is for logs and Celery's copy of the example."""
        self.database = database
        self.server = server
        self.folder = folder
        self.celery_shop = celery_project(folder)

    def project(self, kind: str) -> Path:
        """Return the directory of the project for a kind of worker."""
        return EXAMPLE if kind == "greenq" else self.celery_shop

    def environment(self, kind: str) -> dict[str, str]:
        """Return the environment of a project's processes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GREENQ_")}
        url = self.server.url
        path = os.pathsep.join(map(str, (self.project(kind), ROOT, APPS)))
        own = {"PYTHONPATH": path, "GREENQ_BROKER_URL": url, "BROKER": url, "C_FORCE_ROOT": "1"}
        return kept | self.database.environment | own

    @contextmanager
    def worker(self, kind: str, *options: str) -> Iterator[Process]:
        """Run a worker of a kind; it is ready when the block begins and stopped when it ends."""
        self.server.flush()
        if kind == "greenq":
            command = ["greenq", "worker", "-A", "shop", "-I", "django_tasks"]
        else:
            command = ["celery", "-A", "shop", "worker", "-P", "gevent", "--without-mingle"]
        command = [sys.executable, "-m", *command, "-l", "INFO", *options]
        log = self.folder / f"{kind}-{time.monotonic_ns()}.log"
        worker = Process(command, log, self.environment(kind), self.project(kind))
        try:
            yield worker.wait_text("is ready" if kind == "greenq" else " ready.")
        finally:
            worker.stop(60)

    def run(self, kind: str, call: str, count: int) -> dict[str, Any]:
        """Send tasks; return their outcomes, and the database's connections."""
        extra = "django_tasks" in call
        sender = subprocess.Popen(
            [sys.executable, "-c", SENDER.format(call=call, count=count, extra=extra)],
            cwd=self.project(kind),
            env=self.environment(kind),
            stdout=subprocess.PIPE,
            text=True,
        )
        most = 0
        while sender.poll() is None:
            most = max(most, self.database.connections())
            time.sleep(0.2)
        assert sender.stdout is not None
        found: dict[str, Any] = json.loads(sender.stdout.read())
        time.sleep(SETTLED_S)
        found |= {"most": most, "left": self.database.connections(), "count": count}
        return found


def show(name: str, found: dict[str, Any]) -> None:
    """Print one line of the table, and the failures."""
    failed = sum(found["failures"].values())
    print(
        f"{name:<34}{found['count']:>7}{found['seconds']:>9}{failed:>9}{found['most']:>7}"
        f"{found['left']:>6}{found['seen']:>6}",
        flush=True,
    )
    for text, times in list(found["failures"].items())[:3]:
        print(f"    {times} × {text}")


def main() -> int:
    """Run everything, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Django's connections, compared with Celery.")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--celery-tasks", type=int, default=2_000)
    args = parser.parse_args()
    with (
        postgres() as database,
        valkey() as server,
        tempfile.TemporaryDirectory(prefix="greenq-bench-") as folder,
    ):
        bench = Bench(database, server, Path(folder))
        migrate = [sys.executable, "manage.py", "migrate", "-v0"]
        subprocess.run(migrate, cwd=EXAMPLE, env=bench.environment("greenq"), check=True)
        with database.connect() as connection:
            connection.execute("INSERT INTO orders_product (name, in_stock) VALUES ('tea', 10)")
        print(
            f"PostgreSQL with {MAX_CONNECTIONS} connections; left: {SETTLED_S:g} s after the last"
        )
        print(f"{'':<34}{'tasks':>7}{'s':>9}{'failed':>9}{'most':>7}{'left':>6}{'seen':>6}")
        query, look = "tasks.in_stock.delay('tea')", "django_tasks.look.delay()"
        leave = "django_tasks.leave.delay(f'tenant {n}')"
        of_greenq = []
        for name, calls, options in (
            ("greenq -c 200", [query], ["-c", "200"]),
            ("greenq --autoscale 500,10", [query], ["--autoscale", "500,10"]),
            ("greenq -c 200, leaves, looks", [leave, look], ["-c", "200"]),
        ):
            with bench.worker("greenq", *options):
                for call in calls:
                    of_greenq.append(bench.run("greenq", call, args.tasks))
                    show(name, of_greenq[-1])
        of_celery = None
        if args.celery_tasks:
            with bench.worker("celery", "-c", "200"):
                of_celery = bench.run("celery", query, args.celery_tasks)
                show("celery -P gevent -c 200", of_celery)
    allowed = 0.0
    if of_celery is not None:
        allowed = sum(of_celery["failures"].values()) / of_celery["count"]
    wrong = [
        found
        for found in of_greenq
        if found["left"]
        or found["seen"]
        or sum(found["failures"].values()) > allowed * found["count"]
    ]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
