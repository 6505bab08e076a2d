"""The scripts by which an owner comes, takes, is claimed and leaves, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from greenq.errors import AccessRefused, ServerError
from greenq.protocol.keys import Keys
from greenq.transport.client import Client, Connection, load_script
from greenq.transport.fetch import KNOWN_S, TAKE_BYTES
from tests.servers import Server

pytestmark = pytest.mark.smoke

KEYS = Keys()
MEMBER = "a|node|"
WEEK_S = 7 * 86400

# Places in the answer to a renewal.
FIRST_UNUSED, QUESTION = 6, 7


class Owner:
    """The owner `a`, whose calls of scripts are made by hand."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.client = server.client
        self.connection = connection
        self.calls = 0
        self.question = ""

    def script(self, name: str, keys: list[str], *arguments: object) -> Any:
        return self.connection.script(load_script(name), keys, list(arguments))

    def lease(self, seconds: float = 60, *news: object) -> Any:
        keys = [KEYS.leases, KEYS.owner("a"), KEYS.paused, KEYS.relay(["celery"]), "celery"]
        answer = self.script("lease", keys, MEMBER, seconds, 0, 0, "", *news)
        self.question = answer[QUESTION].decode()
        return answer

    def register(
        self,
        *records: tuple[str, str],
        stubs: tuple[str, ...] = (),
        first: object = 1,
        call: int = 0,
        question: str | None = None,
    ) -> Any:
        """Register as an answer to the last renewal, or to an earlier one."""
        asked = self.question if question is None else question
        keys = [KEYS.unacked, KEYS.unacked_index, KEYS.owner("a"), KEYS.begun("a"), KEYS.leases]
        flat = [part for record in records for part in record]
        return self.script(
            "register", keys,
            MEMBER, first, call, KNOWN_S, asked, len(records), *flat, *stubs,
        )  # fmt: skip

    def take(
        self,
        *queues: str,
        first: int = 1,
        call: int | None = None,
        most: int = 1000,
        most_bytes: int = TAKE_BYTES,
        turn: int = 0,
    ) -> tuple[int, int, list[tuple[int, int, bytes]]]:
        """Return how many are left, the next tag's number, and what was taken."""
        self.calls = self.calls + 1 if call is None else call
        queues = queues or ("celery",)
        keys = [KEYS.unacked, KEYS.unacked_index, KEYS.owner("a"), KEYS.leases, *queues]
        endings = [f', "", "{queue}"]' for queue in queues]
        left, unused, *triples = self.script(
            "take", keys,
            "a:", first, self.calls, most, most_bytes, len(queues), turn, MEMBER, *endings,
        )  # fmt: skip
        parts = iter(triples)
        return left, unused, list(zip(parts, parts, parts, strict=True))

    def claim(self, by: str = "b", seconds: float = 60) -> list[bytes]:
        claimed: list[bytes] = self.script(
            "claim", [KEYS.leases, KEYS.owner("a")], MEMBER, by, seconds
        )
        return claimed

    def leave(self, how: str, remembered_s: int = 3600) -> int:
        done: int = self.script("leave", [KEYS.leases, KEYS.owner("a")], MEMBER, how, remembered_s)
        return done

    def push(self, *messages: str, queue: str = "celery") -> None:
        self.client.lpush(queue, *messages)

    def records(self) -> dict[str, str]:
        return {tag.decode(): text.decode() for tag, text in self.client.hgetall("unacked").items()}

    def known(self) -> dict[str, str]:
        found = self.client.hgetall("greenq.owner.a")
        # What it was asked before it became known stays, and means nothing any more.
        found.pop(b"asks", None)
        return {name.decode(): value.decode() for name, value in found.items()}

    def score(self) -> str | None:
        """Return the lease's end exactly as the server writes it."""
        score: Any = self.connection.call("ZSCORE", KEYS.leases, MEMBER)
        return None if score is None else score.decode()


@pytest.fixture
def owner(server: Server) -> Iterator[Owner]:
    """An owner with a lease that the server knows."""
    with closing(Client(server.url).connection()) as connection:
        owner = Owner(server, connection)
        owner.lease()
        owner.register()
        yield owner


@contextmanager
def no_memory(owner: Owner) -> Iterator[None]:
    owner.client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        owner.client.config_set("maxmemory", 0)


# --- take -----------------------------------------------------------------------------------------


def test_a_take_moves_the_oldest_into_records_and_tells_what_is_left(owner: Owner) -> None:
    owner.push("m1", "m2", "m3")

    assert owner.take(most=2) == (1, 3, [(1, 1, b"m1"), (2, 1, b"m2")])

    assert owner.records() == {"a:1": '[m1, "", "celery"]', "a:2": '[m2, "", "celery"]'}
    assert set(owner.client.zrange("unacked_index", 0, -1)) == {b"a:1", b"a:2"}
    assert owner.known() == {"next": "3", "call": "1"}
    # It got less than it might: then the rest is not counted.
    assert owner.take(first=3, most=5) == (0, 4, [(3, 1, b"m3")])


def test_a_call_that_comes_behind_a_later_one_takes_nothing(owner: Owner) -> None:
    owner.push("m1", "m2")
    owner.take(most=1, call=7)

    for late in (7, 6, 1):
        assert owner.take(first=2, most=1, call=late) == (0, 2, [])
        # Nor does one from before what is held now.
        assert owner.take(first=1, most=1, call=late) == (0, 2, [])

    assert list(owner.records()) == ["a:1"]
    assert owner.known() == {"next": "2", "call": "7"}
    assert owner.take(first=2, most=1, call=8)[2] == [(2, 1, b"m2")]


def test_a_take_whose_answer_got_lost_is_answered_again_with_what_is_still_held(
    owner: Owner,
) -> None:
    owner.push(*(f"m{number}" for number in range(1, 7)))
    owner.take(most=2)
    owner.take(first=3, most=3)
    # Of those, one has gone its way, and one of the earlier ones is no part of the question.
    owner.client.hdel("unacked", "a:4")
    owner.client.zrem("unacked_index", "a:4")

    for most in (1, 0, 1000):
        again = owner.take(first=3, most=most)
        # More than it asks for, whole records, in their order; and nothing new.
        assert again == (0, 6, [(3, 0, b'[m3, "", "celery"]'), (5, 0, b'[m5, "", "celery"]')])

    assert owner.client.llen("celery") == 1
    # And the answer to that may get lost as well: each call has a number above the last one.
    assert owner.known() == {"next": "6", "call": "5"}
    assert owner.take(first=6)[2] == [(6, 1, b"m6")]


def test_a_take_of_nothing_only_asks_what_is_held(owner: Owner) -> None:
    owner.push("m1", "m2")
    owner.take(most=1)

    assert owner.take(first=1, most=0)[2] == [(1, 0, b'[m1, "", "celery"]')]
    assert owner.take(first=2, most=0) == (1, 2, [])


@pytest.mark.parametrize("queues", [[], ["celery"]])
def test_without_queues_what_is_held_is_told_all_the_same(owner: Owner, queues: list[str]) -> None:
    owner.push("m1")
    owner.take()
    keys = [KEYS.unacked, KEYS.unacked_index, KEYS.owner("a"), KEYS.leases, *queues]
    endings = [f', "", "{queue}"]' for queue in queues]

    answer = owner.script("take", keys, "a:", 1, 2, 10, 10, len(queues), 0, MEMBER, *endings)
    assert answer == [0, 2, 1, 0, b'[m1, "", "celery"]']
    answer = owner.script("take", keys, "a:", 2, 3, 10, 10, len(queues), 0, MEMBER, *endings)
    assert answer == [0, 2]


def test_who_is_not_known_takes_nothing(owner: Owner) -> None:
    owner.push("m1")
    owner.client.delete("greenq.owner.a")

    with pytest.raises(ServerError, match="FORGOTTEN") as refused:
        owner.take()

    assert refused.value.passes
    check_untouched(owner)


def test_who_has_left_takes_nothing(owner: Owner) -> None:
    owner.push("m1")
    owner.leave("close")

    with pytest.raises(ServerError, match="CLOSED"):
        owner.take()

    check_untouched(owner)


@pytest.mark.parametrize("ended", [None, 0.0, 1.5])
def test_who_has_no_lease_takes_nothing(owner: Owner, ended: float | None) -> None:
    owner.push("m1")
    owner.client.delete("greenq.leases")
    if ended is not None:
        owner.client.zadd("greenq.leases", {MEMBER: ended})

    with pytest.raises(ServerError, match="LAPSED") as refused:
        owner.take()

    assert refused.value.passes
    check_untouched(owner)


def check_untouched(owner: Owner) -> None:
    assert owner.client.lrange("celery", 0, -1) == [b"m1"]
    assert owner.records() == {}


def test_behind_so_many_bytes_no_more_is_taken_and_the_order_is_kept(owner: Owner) -> None:
    large = 100_000
    messages = [f"{number:0{large}}" for number in range(20)]
    owner.push(*messages)

    taken: list[bytes] = []
    first = 1
    while True:
        left, following, triples = owner.take(first=first, most_bytes=3 * large)
        if not triples:
            break
        # What goes beyond the limit is one message at most.
        assert sum(len(text) for _, _, text in triples) < 4 * large
        assert left == 20 - len(taken) - len(triples)
        taken += [text for _, _, text in triples]
        first = following

    assert [int(text[-4:]) for text in taken] == list(range(20))


def test_one_message_is_taken_however_large_it_is(owner: Owner) -> None:
    owner.push("x" * 200_000, "small")

    left, _, triples = owner.take(most_bytes=1000)

    assert [len(text) for _, _, text in triples] == [200_000]
    assert left == 1


def test_bytes_bound_a_take_from_several_queues(owner: Owner) -> None:
    for queue in ("p", "q", "r"):
        owner.push(*(f"{queue}{number}" + "x" * 50_000 for number in range(10)), queue=queue)

    left, _, triples = owner.take("p", "q", "r", most_bytes=200_000)

    assert len(triples) <= 5
    assert left == 30 - len(triples)
    for index, queue in enumerate((b"p", b"q", b"r"), 1):
        of_queue = [text[:2] for _, number, text in triples if number == index]
        assert of_queue == [queue + b"%d" % number for number in range(len(of_queue))]


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_queues_share_a_take_whoever_is_first(owner: Owner, turn: int) -> None:
    for queue, count in (("p", 100), ("q", 2), ("r", 100)):
        owner.push(*(f"{queue}{number}" for number in range(count)), queue=queue)

    _, _, triples = owner.take("p", "q", "r", most=30, turn=turn)

    shares = {queue: sum(each == queue for _, each, _ in triples) for queue in (1, 2, 3)}
    assert shares[2] == 2
    assert sum(shares.values()) == 30
    assert abs(shares[1] - shares[3]) <= 4
    for index, queue in ((1, b"p"), (3, b"r")):
        of_queue = [text for _, number, text in triples if number == index]
        assert of_queue == [queue + b"%d" % number for number in range(len(of_queue))]


def test_a_queue_gets_as_many_shares_as_it_has_turns(owner: Owner) -> None:
    for queue in ("p", "q"):
        owner.push(*(f"{queue}{number}" for number in range(100)), queue=queue)

    left, _, triples = owner.take("p", "q", "p", "p", most=40)

    assert sum(text.startswith(b"p") for _, _, text in triples) == 30
    assert [text for _, _, text in triples if text.startswith(b"p")] == [
        b"p%d" % number for number in range(30)
    ]
    # Each list counts once.
    assert left == 160


def test_without_turns_a_queue_is_emptied_before_the_next(owner: Owner) -> None:
    for queue in ("p", "q"):
        owner.push(*(f"{queue}{number}" for number in range(10)), queue=queue)

    left, _, triples = owner.take("p", "q", most=14, turn=-1)

    assert [queue for _, queue, _ in triples] == [1] * 10 + [2] * 4
    assert left == 6


def test_a_key_that_is_no_list_is_passed_over_if_another_one_has_messages(owner: Owner) -> None:
    owner.client.set("wrong", "a string")
    owner.push("m1", queue="right")

    assert owner.take("wrong", "right")[2] == [(1, 2, b"m1")]
    with pytest.raises(ServerError, match="WRONGTYPE"):
        owner.take("wrong", "right", first=2)
    # That was a call, too, and takes no tag.
    assert owner.known()["next"] == "2"


def test_a_server_without_memory_gives_messages_and_tells_what_is_held(owner: Owner) -> None:
    owner.push("m1", "m2")

    with no_memory(owner):
        assert owner.take(most=1)[2] == [(1, 1, b"m1")]
        assert owner.take(most=1)[2] == [(1, 0, b'[m1, "", "celery"]')]
        assert owner.take(first=2, most=0)[2] == []


@pytest.mark.parametrize("command", ["hset", "zadd"])
def test_who_may_pop_and_not_record_takes_nothing(owner: Owner, command: str) -> None:
    owner.push("m1")
    owner.client.execute_command(
        "ACL", "SETUSER", "poor", "reset", "on", ">poor", "+@all", "~*", "&*", f"-{command}"
    )
    try:
        owner.connection.call("AUTH", "poor", "poor")
        with pytest.raises(AccessRefused):
            owner.take()
    finally:
        owner.client.execute_command("ACL", "DELUSER", "poor")

    check_untouched(owner)


# --- register -------------------------------------------------------------------------------------


def test_a_new_owner_is_made_known_once(owner: Owner) -> None:
    owner.client.delete("greenq.owner.a")
    owner.lease()

    assert owner.register() == 1
    assert owner.known() == {"next": "1", "call": "0"}
    assert WEEK_S - 60 < owner.client.ttl("greenq.owner.a") <= WEEK_S

    owner.push("m1")
    owner.take()
    assert owner.register() == 0
    assert owner.known() == {"next": "2", "call": "1"}


def test_a_server_that_has_lost_its_data_learns_what_the_owner_has_in_hand(owner: Owner) -> None:
    owner.client.flushall()
    owner.lease()

    done = owner.register(
        ("a:3", '[m3, "", "celery"]'), ("a:5", '[m5, "", "q"]'),
        stubs=("a:2", "a:4"), first=6, call=9,
    )  # fmt: skip

    assert done == 1
    assert owner.records() == {"a:3": '[m3, "", "celery"]', "a:5": '[m5, "", "q"]'}
    assert set(owner.client.zrange("unacked_index", 0, -1)) == {b"a:3", b"a:5"}
    assert owner.client.smembers("greenq.begun.a") == {b"a:2", b"a:4"}
    assert 0 < owner.client.ttl("greenq.begun.a") <= WEEK_S
    # No tag is given twice, and no take from before is carried out.
    owner.push("m6")
    assert owner.take(first=6, call=9) == (0, 6, [])
    assert owner.take(first=6, call=10)[2] == [(6, 1, b"m6")]


def test_an_owner_is_known_with_the_last_portion_only(owner: Owner) -> None:
    owner.client.flushall()
    owner.lease()
    owner.push("m9")

    owner.register(("a:1", "[one]"), first="")
    assert "next" not in owner.known()
    with pytest.raises(ServerError, match="FORGOTTEN"):
        owner.take(first=3)
    owner.register(("a:2", "[two]"), first=3)

    assert owner.records() == {"a:1": "[one]", "a:2": "[two]"}
    assert owner.take(first=3)[2] == [(3, 1, b"m9")]


def test_a_registration_that_comes_late_brings_nothing_back(owner: Owner) -> None:
    assert owner.register(("a:1", "[done since]"), stubs=("a:2",), first=3) == 0

    assert owner.records() == {}
    assert not owner.client.exists("greenq.begun.a")


def test_who_has_no_lease_is_not_made_known(owner: Owner) -> None:
    owner.client.flushall()

    with pytest.raises(ServerError, match="LAPSED"):
        owner.register(("a:1", "[one]"), first=2)

    assert owner.client.dbsize() == 0


def test_who_answers_an_old_question_is_not_made_known(owner: Owner) -> None:
    # A registration that was under way when the data was lost does not know what was taken since.
    owner.client.flushall()
    owner.lease()
    old = owner.question
    owner.client.flushall()
    owner.lease()

    with pytest.raises(ServerError, match="LAPSED"):
        owner.register(("a:1", "[settled since]"), first=2, question=old)

    assert owner.records() == {}
    assert owner.register(("a:2", "[two]"), first=3) == 1
    assert owner.records() == {"a:2": "[two]"}


def test_who_is_unknown_is_asked_the_same_until_it_has_answered(owner: Owner) -> None:
    assert owner.lease()[QUESTION] == b""
    owner.client.delete("greenq.owner.a")

    owner.lease()
    question = owner.question
    owner.lease()

    assert question == owner.question != ""
    owner.register()
    assert owner.lease()[QUESTION] == b""


def test_a_server_without_memory_makes_an_owner_known(owner: Owner) -> None:
    # Otherwise no new worker could empty its queues.
    owner.client.delete("greenq.owner.a")

    with no_memory(owner):
        owner.lease()
        assert owner.register() == 1

    assert owner.known() == {"next": "1", "call": "0"}


# --- lease ----------------------------------------------------------------------------------------


def test_a_renewal_tells_which_tag_is_the_first_unused(owner: Owner) -> None:
    owner.push("m1", "m2")
    assert owner.lease()[FIRST_UNUSED] == 1

    owner.take(most=2)
    assert owner.lease()[FIRST_UNUSED] == 3

    owner.client.delete("greenq.owner.a")
    assert owner.lease()[FIRST_UNUSED] == 0


def test_an_owner_that_has_left_gets_no_lease_any_more(owner: Owner) -> None:
    owner.leave("close")
    before = owner.score()

    assert owner.lease(600)[0] == 0
    # What it has is not prolonged, and once it is gone, a late call does not bring it back.
    assert owner.score() == before
    owner.leave("leave")
    assert owner.lease(600)[0] == 0
    assert owner.score() is None


def test_a_renewal_tells_whether_the_lease_had_ended(owner: Owner) -> None:
    assert owner.lease()[0] == 1
    owner.client.zadd("greenq.leases", {MEMBER: 1.5, "b|other|": 1.0, "c|alive|": 9e9})

    held, *_, other = owner.lease()

    assert (held, other) == (0, b"b|other|")
    assert owner.lease()[0] == 1


# --- claim and leave ------------------------------------------------------------------------------


def test_an_ended_owner_is_claimed_by_one_at_a_time(owner: Owner) -> None:
    owner.client.zadd("greenq.leases", {MEMBER: "12.345678"})

    assert owner.claim(by="b") == [b"12.345678", b""]
    assert owner.claim(by="c") == [b"", b"b"]
    # The one who has claimed it goes on with it.
    assert owner.claim(by="b") == [b"12.345678", b""]

    assert owner.claim(by="b", seconds=-1) == [b"12.345678", b""]
    assert owner.claim(by="c") == [b"12.345678", b""]
    assert owner.claim(by="b") == [b"", b"c"]


def test_a_claim_tells_what_ran_alone(owner: Owner) -> None:
    owner.client.zadd("greenq.leases", {MEMBER: 0})
    owner.client.hset("greenq.owner.a", "alone", "a:7")

    assert owner.claim() == [b"0", b"a:7"]


@pytest.mark.parametrize("is_gone", [True, False])
def test_who_lives_or_is_recovered_already_cannot_be_claimed(owner: Owner, is_gone: bool) -> None:
    if is_gone:
        owner.client.delete("greenq.leases")

    assert owner.claim() == []
    assert "claimant" not in owner.known()


def test_an_owner_leaves_in_two_steps_and_is_known_for_a_while(owner: Owner) -> None:
    owner.push("m1")
    owner.take()

    assert owner.leave("close") == 1
    assert owner.score() is not None
    assert owner.leave("leave") == 1

    assert owner.score() is None
    assert owner.known()["closed"] == "1"
    assert 0 < owner.client.ttl("greenq.owner.a") <= 3600


def test_who_was_recovered_is_forgotten_under_the_claimed_lease_alone(owner: Owner) -> None:
    owner.client.zadd("greenq.leases", {MEMBER: "12.345678"})
    (score, _alone) = owner.claim()

    owner.client.zadd("greenq.leases", {MEMBER: "12.345679"})
    assert owner.leave(score.decode(), 86400) == 0
    assert owner.score() == "12.345679"
    assert owner.client.ttl("greenq.owner.a") > 86400

    owner.client.zadd("greenq.leases", {MEMBER: "12.345678"})
    assert owner.leave(score.decode(), 86400) == 1
    assert owner.score() is None
    assert owner.client.ttl("greenq.owner.a") <= 86400
    # The owner may come back: it takes again as soon as it has a lease.
    assert "closed" not in owner.known()


def test_a_server_without_memory_lets_owners_be_claimed_and_leave(owner: Owner) -> None:
    owner.client.zadd("greenq.leases", {MEMBER: "12.5"})

    with no_memory(owner):
        assert owner.claim() == [b"12.5", b""]
        assert owner.leave("close") == 1
        assert owner.leave("leave") == 1


def test_records_are_read_as_kombu_writes_them(owner: Owner) -> None:
    owner.push(json.dumps({"body": "é"}), queue='q"uo\\te')
    keys = [KEYS.unacked, KEYS.unacked_index, KEYS.owner("a"), KEYS.leases, 'q"uo\\te']
    ending = f', "", {json.dumps(keys[-1])}]'

    owner.script("take", keys, "a:", 1, 1, 1, 1000, 1, 0, MEMBER, ending)

    (record,) = owner.records().values()
    assert json.loads(record) == [{"body": "é"}, "", 'q"uo\\te']
