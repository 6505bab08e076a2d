"""Django on a real PostgreSQL: the example project, and what tasks leave of its connections."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import Postgres, postgres
from tests.servers import APPS, ROOT, Process, Server
from tests.support import wait_until

pytestmark = pytest.mark.timeout(180)

PROJECT = ROOT / "examples" / "django_shop"


class Shop:
    """The example project, on its database and its queue server."""

    def __init__(self, database: Postgres, server: Server) -> None:
        self.database = database
        self.server = server

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GREENQ_")}
        path = os.pathsep.join(map(str, (ROOT, APPS, PROJECT)))
        own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        broker = {"GREENQ_BROKER_URL": self.server.url}
        return kept | self.database.environment | own | broker | dict(more)

    def manage(self, *arguments: str) -> str:
        run = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=PROJECT,
            env=self.environment({}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def run(self, code: str) -> Any:
        """Run code in the project, as a view would; return what it leaves in `answer`."""
        script = (
            "import json, os, time; os.environ['DJANGO_SETTINGS_MODULE'] = 'shop.settings'\n"
            "import django; django.setup()\n"
            "from django.db import transaction\n"
            "from orders.models import Order, Product\n"
            "from orders import tasks\n"
            "import django_tasks as extra\n"
            f"{code}\n"
            "print(json.dumps(answer))"
        )
        run = subprocess.run(
            [sys.executable, "-c", script],
            cwd=PROJECT,
            env=self.environment({}),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    @contextmanager
    def worker(
        self,
        *options: str,
        own: str = "celery,mail",
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[Process]:
        """Run ``greenq worker -A shop`` with the tests' tasks, on queues of its `own`."""
        command = [sys.executable, "-m", "greenq", "worker", "-A", "shop", "-l", "INFO"]
        command += ["-n", f"{own.replace(',', '-')}@test"]
        command += ["-Q", own, "-I", "django_tasks", *options]
        with tempfile.TemporaryDirectory(prefix="greenq-test-") as folder:
            log = Path(folder, "worker.log")
            worker = Process(command, log, self.environment(environment or {}), PROJECT)
            try:
                yield worker.wait_text("Connected to ")
            except BaseException:
                sys.stderr.write(f"--- log of greenq worker\n{worker.text[-6000:]}\n")
                raise
            finally:
                worker.stop()

    def wait_no_connection(self) -> None:
        """Nobody is connected two seconds after the last task."""
        wait_until(lambda: self.database.connections() == 0, 2)


@pytest.fixture(scope="module")
def migrated(shared_server: Server) -> Iterator[Shop]:
    # Workers live through several tests, so that only the first one finds it empty.
    shared_server.flush()
    with postgres() as database:
        shop = Shop(database, shared_server)
        shop.manage("migrate", "--verbosity=0")
        yield shop


@pytest.fixture(scope="module")
def worker(migrated: Shop) -> Iterator[Process]:
    """A worker of 200 greenlets for the tests that need none of their own."""
    with migrated.worker("-c", "200") as worker:
        yield worker


@pytest.fixture
def shop(migrated: Shop) -> Shop:
    with migrated.database.connect() as connection:
        connection.execute("TRUNCATE orders_order, orders_product RESTART IDENTITY")
        connection.execute("INSERT INTO orders_product (name, in_stock) VALUES ('tea', 10)")
    return migrated


def run_many(shop: Shop, calls: str) -> list[Any]:
    """Send the tasks of an expression; return their values, errors as texts."""
    values: list[Any] = shop.run(
        f"results = list({calls})\n"
        "values = [result.get(timeout=120, propagate=False) for result in results]\n"
        "answer = [str(v) if isinstance(v, BaseException) else v for v in values]"
    )
    return values


# --- the example ---------------------------------------------------------------------------------


def test_the_migrations_are_those_of_the_models(shop: Shop) -> None:
    shop.manage("makemigrations", "--check", "--dry-run")


def test_tasks_of_all_apps_are_known_and_named(worker: Process) -> None:
    for name in ("confirm", "in_stock", "send_receipt"):
        assert f"orders.tasks.{name}" in worker.text


def test_orders_are_confirmed_when_they_are_committed(shop: Shop, worker: Process) -> None:
    placed = shop.run(
        "tea = Product.objects.get(name='tea')\n"
        "answer = [Order.place(tea, amount).pk for amount in (4, 7, 5)]\n"
        "try:\n"
        "    with transaction.atomic():\n"
        "        Order.place(tea, 1)\n"
        "        raise RuntimeError\n"
        "except RuntimeError:\n"
        "    pass\n"
    )
    assert placed == [1, 2, 3]

    def all_ended() -> bool:
        with shop.database.connect() as connection:
            found = connection.execute("SELECT state, receipts FROM orders_order").fetchall()
        # Which two of the three fit into the stock depends on who is first.
        states = sorted(str(state) for state, _ in found)
        receipts = all((state == "confirmed") == (count == 1) for state, count in found)
        return "placed" not in states and "confirmed" in states and receipts

    wait_until(all_ended, 20)
    shop.server.wait_settled()
    assert len(re.findall(r"Task orders\.tasks\.confirm\[[^]]+\] received", worker.text)) == 3


# --- connections ---------------------------------------------------------------------------------


def test_many_tasks_leave_no_connection(shop: Shop, worker: Process) -> None:
    calls = "tasks.in_stock.delay_many(('tea',) for _ in range(300))"
    assert run_many(shop, calls) == [10] * 300
    shop.wait_no_connection()


def test_more_tasks_than_connections_wait_for_one(shop: Shop, worker: Process) -> None:
    answers = run_many(shop, "extra.sleep.delay_many((0.5,) for _ in range(150))")
    assert [answer for answer in answers if not isinstance(answer, int)] == []
    worker.wait_text("the database 'default' has no connections left")
    shop.wait_no_connection()


def test_queries_do_not_hold_up_one_another(shop: Shop, worker: Process) -> None:
    took = shop.run(
        "began = time.monotonic()\n"
        "for result in extra.sleep.delay_many((1,) for _ in range(20)): result.get(timeout=60)\n"
        "answer = time.monotonic() - began"
    )
    # One after the other they would take 20 s.
    assert took < 8


def test_nothing_of_a_task_is_seen_by_another(shop: Shop, worker: Process) -> None:
    left = run_many(shop, "extra.leave.delay_many((f'tenant {n}',) for n in range(50))")
    assert left == [None] * 50
    assert run_many(shop, "extra.look.delay_many(() for _ in range(50))") == [[]] * 50
    shop.wait_no_connection()


def test_a_pool_that_grows_and_shrinks_leaves_no_connection(shop: Shop) -> None:
    with shop.worker("--autoscale", "500,10", own="scaled"):
        answers = run_many(
            shop,
            "extra.sleep.apply_async_many((((0.05,), {}) for _ in range(300)), queue='scaled')",
        )
        assert [answer for answer in answers if not isinstance(answer, int)] == []
        shop.wait_no_connection()


def test_djangos_own_pool_is_shared(shop: Shop) -> None:
    with shop.worker("-c", "100", own="pooled", environment={"SHOP_POOL": "5"}):
        answers = run_many(
            shop,
            "extra.sleep.apply_async_many((((0.01,), {}) for _ in range(100)), queue='pooled')",
        )
        assert [answer for answer in answers if not isinstance(answer, int)] == []
        assert len(set(answers)) <= 5
        assert shop.database.connections() <= 5
    shop.wait_no_connection()


def test_no_task_ends_up_with_a_connection_that_is_broken_or_in_a_transaction(shop: Shop) -> None:
    with shop.worker("-c", "1", own="single"):
        answers = run_many(
            shop,
            "(t.apply_async(a, queue='single') for t, a in ("
            "(extra.broken, ()), (extra.sleep, (0,)),"
            "(extra.in_atomic, ()), (tasks.in_stock, ('tea',))))",
        )
    assert "terminating connection" in answers[0]
    assert isinstance(answers[1], int)
    assert answers[2:] == [None, 10]
