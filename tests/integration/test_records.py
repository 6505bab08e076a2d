"""`inspect records`: what the server holds for a worker, beside what the worker knows."""

from __future__ import annotations

import time
from contextlib import closing

from greenq import Greenq
from tests.servers import Server, greenq_worker
from tests.support import wait_until

WAIT_S = 30

AT_REST = {"held": 0, "known": 0, "unknown": [], "missing": []}


def test_records_are_equal_at_rest_and_what_is_planted_or_taken_away_is_named(
    server: Server,
) -> None:
    with (
        closing(Greenq("sender", broker=server.url, set_as_current=False)) as app,
        greenq_worker(server.url, app="ledger_app"),
    ):

        def told() -> dict[str, object]:
            (records,) = app.control.inspect(timeout=WAIT_S, limit=1).records().values()
            return dict(records)

        wait_until(lambda: app.control.ping(timeout=1, limit=1), WAIT_S)
        assert told() == AT_REST
        sent = [app.send_task("ledger.wait", (f"t{number}",)) for number in range(3)]
        wait_until(lambda: server.client.llen("ledger") == 3, WAIT_S)
        wait_until(lambda: told() == {"held": 3, "known": 3, "unknown": [], "missing": []})

        tags = sorted(tag.decode() for tag in server.unacked())
        gone, planted = tags[1], tags[1].partition(":")[0] + ":999"
        record = server.client.hget("unacked", gone)
        server.client.hset("unacked", planted, record)
        server.client.zadd("unacked_index", {planted: time.time()})
        server.client.hdel("unacked", gone)
        server.client.zrem("unacked_index", gone)
        missing = next(each.id for each in sent if each.id.encode() in record)
        assert told() == {"held": 3, "known": 3, "unknown": [planted], "missing": [missing]}

        # Once both are as they were, all is settled in the end.
        server.client.hdel("unacked", planted)
        server.client.zrem("unacked_index", planted)
        server.client.hset("unacked", gone, record)
        server.client.zadd("unacked_index", {gone: time.time()})
        server.client.set("gate", 1)
        assert [each.get(timeout=WAIT_S) for each in sent] == ["t0", "t1", "t2"]
        wait_until(lambda: told() == AT_REST)
