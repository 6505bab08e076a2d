"""What waits for its ETA is listed page by page, in the worker and on the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from greenq import Greenq
from tests.servers import Server, greenq_worker
from tests.support import wait_until

NEAR, FAR, FURTHER = 5, 30, 7


def test_scheduled_tasks_are_listed_in_pages_wherever_they_wait(server: Server) -> None:
    app = Greenq("sender", broker=server.url)
    with greenq_worker(server.url, "-Q", "celery,web", "-n", "w1@host"):
        now = datetime.now(UTC)
        sent = []
        for number in range(FAR):
            eta = now + timedelta(hours=1, seconds=number)
            sent.append(app.send_task("shared.add", (number, 1), eta=eta).id)
        for number in range(FURTHER):
            eta = now + timedelta(days=1, seconds=number)
            sent.append(app.send_task("shared.add", (number, 2), eta=eta, queue="web").id)
        near = [app.send_task("shared.add", (0, number), countdown=60).id for number in range(NEAR)]
        server.client.zadd("greenq.eta.web", {b"1|no message": 9e9})
        parked = ("greenq.eta.celery", "greenq.eta.web")
        wait_until(lambda: sum(map(server.client.zcard, parked)) == FAR + FURTHER + 1)
        inspect = app.control.inspect(["w1@host"])
        wait_until(lambda: len(inspect.scheduled(limit=NEAR)["w1@host"]) == NEAR)

        listed = []
        while page := inspect.scheduled(limit=10, offset=len(listed))["w1@host"]:
            assert len(page) <= 10
            listed += page

        ids = [each["request"]["id"] for each in listed]
        assert set(ids[:NEAR]) == set(near)
        assert ids[NEAR:] == [*sent, None]
        last = listed[NEAR + FAR]
        assert datetime.fromisoformat(last["eta"]) == now + timedelta(days=1)
        assert (last["request"]["name"], last["request"]["args"]) == ("shared.add", [0, 2])
        assert last["request"]["delivery_info"]["routing_key"] == "web"
        assert len(inspect.scheduled()["w1@host"]) == NEAR + FAR + FURTHER + 1
    app.close()
