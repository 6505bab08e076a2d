"""greenq's remote control over Celery's workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenq import Greenq
from greenq.transport.mailbox import Mailbox
from tests.interop.conftest import greenq_client
from tests.servers import Server, celery_worker
from tests.support import FairTime, wait_until

pytestmark = pytest.mark.interop

NODE = "w1@wire"
# Celery's own client waits for a second after the last reply.
QUICK_S = 0.5


@pytest.fixture(scope="module", params=["gevent", "prefork"])
def app(request: pytest.FixtureRequest, shared_server: Server) -> Iterator[Greenq]:
    """Make a greenq app beside a Celery worker with each pool in turn."""
    shared_server.flush()
    with (
        celery_worker(shared_server.url, "-n", NODE, pool=request.param, concurrency=2),
        greenq_client(shared_server.url) as app,
    ):
        # With gevent it calls itself ready before it listens.
        wait_until(lambda: app.control.ping(timeout=10))
        yield app


@pytest.fixture
def mailbox(app: Greenq) -> Mailbox:
    return Mailbox(app.transport.client, app.transport.keys)


def test_ping_is_answered_quickly(mailbox: Mailbox, shared_server: Server) -> None:
    mailbox.ask("ping", timeout_s=10)
    clock = FairTime()
    assert mailbox.ask("ping", timeout_s=10) == {NODE: {"ok": "pong"}}
    assert clock.passed_s() < QUICK_S
    # Nothing of the asker stays.
    assert shared_server.client.keys("*reply.celery.pidbox") == []


def test_unknown_commands_and_wrong_arguments_are_answered_with_errors(mailbox: Mailbox) -> None:
    assert mailbox.ask("no_such", timeout_s=10) == {NODE: {"error": "KeyError('no_such')"}}
    ((_, reply),) = mailbox.ask("rate_limit", timeout_s=10).items()
    assert reply["error"].startswith("TypeError(")


def test_names_and_patterns_are_understood(mailbox: Mailbox) -> None:
    pong = {NODE: {"ok": "pong"}}
    assert mailbox.ask("ping", destination=[NODE], timeout_s=10) == pong
    assert mailbox.ask("ping", pattern="w?@*", matcher="glob", timeout_s=10) == pong
    assert mailbox.ask("ping", pattern="w[0-9]@", matcher="pcre", timeout_s=10) == pong
    assert mailbox.ask("ping", destination=["w2@wire"], timeout_s=QUICK_S) == {}
    assert mailbox.ask("ping", pattern="x*", matcher="glob", timeout_s=QUICK_S) == {}


def test_control_has_the_answers_that_celery_gives(app: Greenq) -> None:
    control = app.control
    assert control.ping() == [{NODE: {"ok": "pong"}}]
    inspect = control.inspect()
    assert "shared.add" in inspect.registered()[NODE]
    assert inspect.stats()[NODE]["pool"]
    assert inspect.active() == inspect.reserved() == inspect.scheduled() == {NODE: []}
    assert [queue["name"] for queue in inspect.active_queues()[NODE]] == ["celery"]
    assert control.inspect(NODE).conf(with_defaults=True)["worker_prefetch_multiplier"] >= 1
    assert control.rate_limit("shared.add", "10/m", reply=True) == [
        {NODE: {"ok": "new rate limit set successfully"}}
    ]
    control.rate_limit("shared.add", 0)


def test_a_revoked_task_does_not_run(app: Greenq) -> None:
    control = app.control
    control.revoke("revoked-1")
    wait_until(lambda: "revoked-1" in control.inspect(NODE).revoked())
    app.send_task("shared.add", (1, 2), task_id="revoked-1")
    last = app.send_task("shared.add", (1, 3))
    assert last.get(timeout=10) == 4
    wait_until(lambda: app.AsyncResult("revoked-1").state == "REVOKED")
