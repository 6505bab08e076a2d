"""Recovery, on a real server: in portions, under the lease that was claimed, and who counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from greenq.protocol.keys import Keys
from greenq.transport import fetch
from greenq.transport.broker import Broker
from greenq.transport.client import Client
from greenq.transport.leases import Leases
from greenq.transport.owner import Owner
from greenq.transport.recovery import Recovery, is_suspect, newest_first
from greenq.transport.settle import BEGIN, Fence, Move, Settlement, StateWrite, settle
from tests.servers import Server

pytestmark = pytest.mark.smoke

KEYS = Keys()
DEAD = Owner("dead", "node", "")
DEAD_LETTERS = "dead 67108864 0 -"
ENDED = "12.345678"
MAX_DELIVERIES = 3
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def message(
    task_id: str, *, deliveries: int | None = None, eta: str | None = None, **extra: Any
) -> str:
    properties: dict[str, Any] = {"delivery_info": {"exchange": "", "routing_key": "celery"}}
    properties |= {} if deliveries is None else {"deliveries": deliveries}
    headers = {"id": task_id, "task": "proj.add", "eta": eta}
    return json.dumps({"body": "", "headers": headers, "properties": properties | extra})


class Grave:
    """A dead owner's records, and a worker that gives them back."""

    def __init__(self, server: Server, client: Client, name: str = "claimant") -> None:
        self.server = server
        self.client = server.client
        self.connection = client.connection()
        self.buried: list[tuple[str, str, str, str | None]] = []
        self.runs_again = True
        self.recovery = Recovery(
            self.connection,
            None,
            Broker(client, KEYS),
            claimant=name,
            claim_s=60.0,
            max_deliveries=MAX_DELIVERIES,
            may_run_again=lambda name: self.runs_again or name != "proj.add",
            bury=self.bury,
            now_s=NOW.timestamp,
        )

    def bury(
        self, tag: str, queue: str, raw: bytes, reason: str, task_id: str | None
    ) -> Settlement:
        self.buried.append((tag, queue, reason, task_id))
        state = None if task_id is None else StateWrite(f"result-{task_id}", "f60", "FAILURE")
        return Settlement.moving(Move(tag, f"greenq.dead.{queue}", DEAD_LETTERS, raw), state)

    def die(self, *messages: str, alone: str = "", owner: str = "dead") -> None:
        """Leave records, numbered from 1."""
        for number, text in enumerate(messages, 1):
            self.client.hset("unacked", f"{owner}:{number}", f'[{text}, "", "celery"]')
            self.client.zadd("unacked_index", {f"{owner}:{number}": number})
        self.client.hset(f"greenq.owner.{owner}", mapping={"next": len(messages) + 1, "call": 1})
        if alone:
            self.client.hset(f"greenq.owner.{owner}", "alone", alone)
        self.connection.call("ZADD", "greenq.leases", ENDED, str(DEAD._replace(incarnation=owner)))

    def run(self, until: Callable[[], object] = bool) -> int:
        """Recover until it is over, or `until` says so; return the number of turns."""
        turns = 0
        while self.recovery.busy and not until():
            self.recovery.step()
            turns += 1
        return turns

    def recover(self, dead: Owner = DEAD) -> int:
        self.recovery.add(dead)
        return self.run()

    def queued(self, queue: str = "celery") -> dict[str, int | None]:
        """Return what is in the queue, the next one first, and its deaths."""
        found = {}
        for text in self.server.queued(queue):
            read = json.loads(text)
            assert read["headers"]["redelivered"] is True
            found[read["headers"]["id"]] = read["properties"].get("deliveries")
        return found

    def reserved(self) -> set[str]:
        return {tag.decode() for tag in self.server.unacked()}


@pytest.fixture
def grave(server: Server) -> Iterator[Grave]:
    client = Client(server.url)
    grave = Grave(server, client)
    with closing(client), closing(grave.connection):
        yield grave


def test_a_dead_owners_messages_are_back_in_their_order_and_its_lease_is_gone(
    grave: Grave, caplog: pytest.LogCaptureFixture
) -> None:
    grave.die(*(message(f"t{number}") for number in range(1, 13)))
    grave.client.lpush(
        "celery", json.dumps({"headers": {"id": "new", "redelivered": True}, "properties": {}})
    )
    grave.die(message("other"), owner="deader")

    grave.recover()

    # Those of another owner whose name begins alike stay.
    assert grave.reserved() == {"deader:1"}
    expected = {f"t{number}": 1 for number in range(1, 13)}
    assert list(grave.queued().items()) == [*expected.items(), ("new", None)]
    assert grave.client.zrange("greenq.leases", 0, -1) == [b"deader|node|"]
    assert "worker node died: 12 messages are back on their queues" in caplog.text
    # What it may still write is seen to be somebody else's.
    assert 0 < grave.client.ttl("greenq.owner.dead") <= 86400


def test_each_turn_moves_no_more_than_so_many_messages(
    grave: Grave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PORTION_COUNT", 10)
    grave.die(*(message(f"t{number}") for number in range(25)))
    grave.recovery.add(DEAD)
    left = [25]

    while grave.recovery.busy:
        grave.recovery.step()
        left.append(len(grave.reserved()))

    assert {one - other for one, other in pairwise(left)} == {0, 10, 5}
    assert list(grave.queued()) == [f"t{number}" for number in range(25)]


def test_each_turn_moves_no_more_than_so_many_bytes(
    grave: Grave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PORTION_BYTES", 10_000)
    sizes = [100, 4000, 4000, 4000, 30_000, 100, 100, 9_000]
    grave.die(*(message(f"t{n}", extra="x" * size) for n, size in enumerate(sizes)))
    before = grave.connection._traffic.round_trips
    grave.recovery.add(DEAD)
    moved: list[set[str]] = []

    while grave.recovery.busy:
        held = grave.reserved()
        grave.recovery.step()
        if gone := held - grave.reserved():
            moved.append({sizes[int(tag.rpartition(":")[2]) - 1] for tag in gone})

    # The newest first; one that is larger has a portion of its own.
    assert moved == [{9_000, 100}, {30_000}, {4000}, {4000, 100}]
    assert list(grave.queued()) == [f"t{number}" for number in range(len(sizes))]
    assert grave.connection._traffic.round_trips > before


def test_who_comes_back_keeps_what_has_not_been_moved(
    grave: Grave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PORTION_COUNT", 10)
    grave.die(*(message(f"t{number}") for number in range(25)))
    grave.recovery.add(DEAD)
    grave.run(until=lambda: len(grave.reserved()) == 15)

    grave.connection.call("ZADD", "greenq.leases", "9e9", str(DEAD))
    grave.run()

    assert grave.reserved() == {f"dead:{number}" for number in range(1, 16)}
    assert list(grave.queued()) == [f"t{number}" for number in range(15, 25)]
    assert grave.client.zscore("greenq.leases", str(DEAD)) == 9e9


def test_a_lease_that_is_renewed_between_the_claim_and_the_move_stops_the_move(
    grave: Grave, caplog: pytest.LogCaptureFixture
) -> None:
    grave.die(message("t1"))
    bury, grave.runs_again = grave.recovery._bury, False

    def come_back(*told: Any) -> Settlement:
        grave.client.zadd("greenq.leases", {str(DEAD): 9e9})
        return bury(*told)

    grave.recovery._bury = come_back

    grave.recover()

    assert grave.reserved() == {"dead:1"}
    assert not grave.client.exists("greenq.dead.celery", "result-t1")
    # That is as it should be, and nothing to be told of.
    assert not caplog.records
    assert not grave.recovery.busy


def test_one_worker_recovers_an_owner_and_another_goes_on_when_that_died(
    grave: Grave, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetch, "PORTION_COUNT", 10)
    grave.die(*(message(f"t{number}") for number in range(25)))
    grave.recovery.add(DEAD)
    grave.run(until=lambda: len(grave.reserved()) == 15)
    client = Client(grave.server.url)
    second = Grave(grave.server, client, "second")

    with closing(client), closing(second.connection):
        second.recover()
        assert len(grave.reserved()) == 15

        # Its claim has ended.
        grave.client.hset("greenq.owner.dead", "claimed_until", "1.0")
        second.recover()

        assert grave.reserved() == set()
        # And the first one has lost its own.
        grave.run()
    assert list(grave.queued()) == [f"t{number}" for number in range(25)]
    assert "15 messages are back" in caplog.text


def test_an_owner_is_recovered_once_at_a_time(
    grave: Grave, caplog: pytest.LogCaptureFixture
) -> None:
    grave.die(message("t1"))

    grave.recovery.add(DEAD)
    grave.recovery.add(DEAD)
    grave.run()
    grave.recover()

    assert list(grave.queued()) == ["t1"]
    assert caplog.text.count("are back on their queues") == 1


def test_one_owners_failure_does_not_keep_the_others_waiting(
    grave: Grave, caplog: pytest.LogCaptureFixture
) -> None:
    grave.die(message("t1"))
    other = DEAD._replace(incarnation="other")
    grave.die(message("t2"), owner="other")
    grave.client.set("greenq.owner.dead", "no hash")
    grave.recovery.add(DEAD)
    grave.recovery.add(other)
    grave.run()

    assert list(grave.queued()) == ["t2"]
    assert "could not requeue messages of lost workers" in caplog.text
    grave.client.delete("greenq.owner.dead")
    grave.recover()
    assert sorted(grave.queued()) == ["t1", "t2"]


def test_nothing_is_connected_when_there_is_nothing_to_do(grave: Grave) -> None:
    grave.die(message("t1"))
    assert not grave.connection.connected or grave.recovery.close() is None

    grave.recover()

    assert not grave.connection.connected


# --- whose death it was ---------------------------------------------------------------------------


def test_a_death_counts_against_all_that_had_begun(grave: Grave) -> None:
    grave.die(message("t1"), message("t2", deliveries=1), message("t3", deliveries=2))

    grave.recover()

    # The third is a suspect, and nothing was announced to run alone: it had not begun.
    assert grave.queued() == {"t1": 1, "t2": 2, "t3": 2}
    assert grave.buried == []


@pytest.mark.parametrize(("ahead_s", "count"), [(60, None), (-60, 1)])
def test_what_waits_for_its_eta_has_not_begun(
    grave: Grave, ahead_s: float, count: int | None
) -> None:
    eta = (NOW + timedelta(seconds=ahead_s)).isoformat()
    grave.die(message("t1", eta=eta))

    grave.recover()

    assert grave.queued() == {"t1": count}


def test_a_death_counts_only_against_what_ran_alone(grave: Grave) -> None:
    grave.die(
        message("t1"), message("t2", deliveries=1), message("t3", deliveries=1), alone="dead:2"
    )
    grave.client.lpush("celery", message("waiting", redelivered=True))
    # Of one that nobody has redelivered yet, too.
    text = json.loads(grave.client.rpop("celery"))  # type: ignore[arg-type]
    text["headers"]["redelivered"] = True
    grave.client.lpush("celery", json.dumps(text))

    grave.recover()

    # The others are taken next; it comes behind all that waits.
    assert grave.queued() == {"t1": None, "t3": 1, "waiting": None, "t2": 2}
    assert list(grave.queued())[-1] == "t2"


@pytest.mark.parametrize(
    ("deliveries", "alone", "is_buried"),
    [
        (MAX_DELIVERIES - 1, True, True),
        (MAX_DELIVERIES, True, True),
        (MAX_DELIVERIES - 2, True, False),
        (MAX_DELIVERIES - 1, False, False),
        (MAX_DELIVERIES + 5, False, False),
    ],
)
def test_a_message_is_buried_at_its_last_death_if_it_died_alone(
    grave: Grave, deliveries: int, alone: bool, is_buried: bool
) -> None:
    grave.die(message("t1", deliveries=deliveries), alone="dead:1" if alone else "")

    grave.recover()

    assert bool(grave.buried) is is_buried
    counted = deliveries + 1 if alone else deliveries
    assert grave.queued() == ({} if is_buried else {"t1": counted})
    assert grave.reserved() == set()
    if is_buried:
        deaths = f"its worker died {deliveries + 1} times while running it"
        reason = f"{deaths}, the last time alone"
        assert grave.buried == [("dead:1", "celery", reason, "t1")]
        assert grave.client.llen("greenq.dead.celery") == 1
        assert grave.client.get("result-t1") == b"FAILURE"


def test_with_one_death_allowed_each_is_the_last(grave: Grave) -> None:
    grave.recovery._max_deliveries = 1
    eta = (NOW + timedelta(seconds=60)).isoformat()
    grave.die(message("t1"), message("t2", eta=eta))

    grave.recover()

    assert [task_id for *_, task_id in grave.buried] == ["t1"]
    assert grave.queued() == {"t2": None}


@pytest.mark.parametrize(
    ("deliveries", "most", "expected"),
    [
        (0, 3, False),
        (1, 3, False),
        (2, 3, True),
        (1, 2, True),
        (0, 2, False),
        (0, 1, False),
        (1, 1, True),
        (5, 100, True),
    ],
)
def test_suspects_have_two_deaths_or_all_but_one(
    deliveries: int, most: int, expected: bool
) -> None:
    assert is_suspect(deliveries, most) is expected


def test_a_task_that_may_not_run_again_is_buried_if_it_had_begun(grave: Grave) -> None:
    grave.runs_again = False
    eta = (NOW + timedelta(seconds=60)).isoformat()
    grave.die(message("t1"), message("later", eta=eta))

    grave.recover()

    assert [(tag, reason, task_id) for tag, _, reason, task_id in grave.buried] == [
        ("dead:1", "its worker died, and reject_on_worker_lost is off", "t1")
    ]
    assert list(grave.queued()) == ["later"]


def test_a_task_that_may_not_run_again_and_waited_beside_one_that_ran_alone_had_not_begun(
    grave: Grave,
) -> None:
    grave.runs_again = False
    grave.die(message("t1"), message("t2", deliveries=1), alone="dead:2")

    grave.recover()

    assert [task_id for *_, task_id in grave.buried] == ["t2"]
    assert list(grave.queued()) == ["t1"]


def test_a_success_is_not_replaced_by_a_burial(grave: Grave) -> None:
    grave.runs_again = False
    grave.client.set("result-t1", '{"status": "SUCCESS"}')
    grave.die(message("t1"))

    grave.recover()

    assert grave.client.get("result-t1") == b'{"status": "SUCCESS"}'
    assert grave.client.llen("greenq.dead.celery") == 1


@pytest.mark.parametrize(
    "record", [b"\xff", b"[]", b'[{"headers": 5}, "", "celery"]', b'["x", "", "celery"]']
)
def test_a_record_that_is_no_message_is_buried_and_stops_no_other(
    grave: Grave, record: bytes
) -> None:
    grave.die(message("t1"), message("t2"), message("t3"))
    grave.client.hset("unacked", "dead:2", record)

    grave.recover()

    assert list(grave.queued()) == ["t1", "t3"]
    ((tag, queue, reason, task_id),) = grave.buried
    assert (tag, queue, task_id) == ("dead:2", "celery", None)
    assert reason.startswith("its record is not a message: ")


def test_an_index_entry_without_a_record_goes(grave: Grave) -> None:
    grave.die(message("t1"))
    grave.client.zadd("unacked_index", {"dead:9": 1})

    grave.recover()

    assert list(grave.queued()) == ["t1"]
    assert not grave.client.exists("unacked_index")


def test_a_message_goes_to_the_list_of_its_priority(grave: Grave) -> None:
    grave.die(message("t1", priority=6))

    grave.recover()

    assert grave.client.llen("celery\x06\x166") == 1


# --- of the living and of nobody ------------------------------------------------------------------


def test_what_nobody_owns_is_given_back_and_counts_nothing(
    grave: Grave, caplog: pytest.LogCaptureFixture
) -> None:
    grave.die(message("t1"), message("t2"), message("t3"))
    # As kombu names its own, the oldest first.
    found = ["dead:1", "dead:3"]

    grave.recovery.add_overdue(lambda: found)
    grave.run()

    assert grave.queued() == {"t1": None, "t3": None}
    assert grave.reserved() == {"dead:2"}
    assert "2 messages were abandoned and are back" in caplog.text


def test_an_owner_gives_back_all_that_it_has(grave: Grave) -> None:
    grave.die(message("t1"), message("t2", deliveries=1), message("t3"))

    assert grave.recovery.give_back_all("dead", ["dead:2"]) == 1
    assert grave.recovery.give_back_all("dead") == 2
    assert grave.recovery.give_back_all("dead") == 0

    assert grave.queued() == {"t1": None, "t3": None, "t2": 1}


def leases(grave: Grave, owner: Owner = DEAD) -> Leases:
    return Leases(
        grave.connection,
        grave.recovery._broker,
        owner,
        queues=["celery"],
        lease_s=60.0,
        visibility_timeout_s=3600.0,
        recovery=grave.recovery,
    )


def test_who_leaves_gives_back_what_it_still_has_and_takes_nothing_more(grave: Grave) -> None:
    grave.die(message("t1"), message("t2"))

    assert leases(grave).leave([]) == 2

    assert grave.queued() == {"t1": None, "t2": None}
    assert not grave.client.exists("greenq.leases", "unacked")
    assert grave.client.hget("greenq.owner.dead", "closed") == b"1"


def test_who_leaves_does_not_try_for_ever_what_cannot_be_moved(
    grave: Grave, caplog: pytest.LogCaptureFixture
) -> None:
    grave.die(message("t1"), message("t2"), message("t3", priority=6))
    grave.client.set("celery", "a string")

    assert leases(grave).leave([]) == 1

    assert grave.reserved() == {"dead:1", "dead:2"}
    assert "stay reserved: WRONGTYPE celery is no list but a string" in caplog.text
    assert not grave.client.exists("greenq.leases")


def test_what_cannot_be_moved_is_not_told_to_be_back(
    grave: Grave, caplog: pytest.LogCaptureFixture
) -> None:
    grave.die(message("t1"), message("t2", priority=6))
    grave.client.set("celery", "a string")

    grave.recover()

    assert "1 messages are back" in caplog.text
    assert grave.reserved() == {"dead:1"}


def test_forgotten_are_the_records_that_their_owner_has_settled(grave: Grave) -> None:
    grave.die(*(message(f"t{number}") for number in range(1, 6)))

    found = leases(grave).forgotten({"dead:2"}, 4)

    # What has a number from then on may just be on its way.
    assert found == {"dead:1", "dead:3"}
    leases(grave).give_back_forgotten(found)
    assert sorted(grave.queued()) == ["t1", "t3"]


def test_what_the_dead_owner_writes_when_it_comes_back_is_seen_to_be_somebody_elses(
    grave: Grave,
) -> None:
    grave.die(message("t1"), message("t2"))
    settle(grave.connection, KEYS, [Settlement("dead:2", BEGIN)], fence=Fence("dead"))
    grave.recover()
    endings = [
        Settlement("dead:1", result=StateWrite("r1", "f60", '{"status": "FAILURE"}')),
        Settlement("dead:2", result=StateWrite("r2", "f60", '{"status": "FAILURE"}')),
    ]

    settled = settle(grave.connection, KEYS, endings, fence=Fence("dead"))

    # But what was acknowledged before its run is nobody else's.
    assert settled.not_held == {0}
    assert grave.client.mget("r1", "r2") == [None, b'{"status": "FAILURE"}']
    assert grave.queued() == {"t1": 1}


def test_tags_are_ordered_by_number_not_by_text() -> None:
    assert newest_first(["a:2", "a:10", "a:1"]) == ["a:10", "a:2", "a:1"]
