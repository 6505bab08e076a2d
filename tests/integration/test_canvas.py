"""Chords on a real server: their size, and those that were never sent completely."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from greenq import Greenq, chord, group
from greenq.cli import main
from greenq.errors import ChordError, NotAllSent, ResultsDisabled
from tests.servers import Server, greenq_worker

WAIT_S = 20


@pytest.fixture
def app(server: Server) -> Iterator[Greenq]:
    with closing(Greenq("sender", broker=server.url)) as made:
        made.task(name="add")(lambda x, y: x + y)
        made.task(name="total")(sum)
        yield made


def size(server: Server, group_id: str) -> tuple[bytes | None, int]:
    key = f"celery-taskset-meta-{group_id}.s"
    return server.client.get(key), server.client.ttl(key)


@pytest.mark.parametrize("count", [3, 450])
@pytest.mark.parametrize("kind", [list, iter])
def test_size_of_a_chord_is_there_when_it_has_been_sent(
    app: Greenq, server: Server, count: int, kind: Any
) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    handle = chord(kind([add.s(n, n) for n in range(count)]), total.s()).delay()
    value, ttl_s = size(server, handle.parent.id)
    assert value == b"%d" % count
    assert 86000 < ttl_s <= 86400
    assert server.client.llen("celery") == count
    assert app.transport.chords.unsealed() == []


def test_claim_of_an_earlier_run_is_taken_back(app: Greenq, server: Server) -> None:
    sig = chord([app.tasks["add"].s(1, 1)], app.tasks["total"].s())
    claim = f"celery-taskset-meta-{sig.freeze().parent.id}.c"
    server.client.set(claim, "done")
    sig.delay()
    assert not server.client.exists(claim)


def cut_off(app: Greenq) -> str:
    """Send a header whose last member is wrong, and return the group's id."""
    add, total = app.tasks["add"], app.tasks["total"]
    members = [add.s(n, n) for n in range(250)]
    sig = chord((each for each in [*members, add.s(object(), 1)]), total.s())
    sig.tasks.set(task_id="cut-off")
    sig.body.set(task_id="never-runs")
    with pytest.raises(NotAllSent):
        sig.delay()
    return "cut-off"


def test_chord_that_was_cut_off_is_known_and_has_no_size(app: Greenq, server: Server) -> None:
    group_id = cut_off(app)
    assert size(server, group_id)[0] is None
    (entry,) = app.transport.chords.unsealed()
    assert (entry.group_id, entry.body, entry.body_id) == (group_id, "total", "never-runs")
    assert app.transport.chords.unsealed(60) == []


def test_queues_names_it(app: Greenq, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    group_id = cut_off(app)
    ((member, score),) = server.client.zrange("greenq.unsealed", 0, -1, withscores=True)
    assert json.loads(member)["group"] == group_id
    main(["--broker", server.url, "queues"])
    assert "chord" not in capsys.readouterr().out
    server.client.zadd("greenq.unsealed", {member: score - 61})
    main(["--broker", server.url, "queues"])
    out = capsys.readouterr().out
    assert f"chord {group_id}: its header has been incomplete since 20" in out
    assert "its body total (id never-runs) will never run" in out


def test_old_entries_are_dropped(app: Greenq, server: Server) -> None:
    cut_off(app)
    ((member, score),) = server.client.zrange("greenq.unsealed", 0, -1, withscores=True)
    server.client.zadd("greenq.unsealed", {member: score - 8 * 86400})
    app.transport.chords.open("g", "total", "i", 3)
    (entry,) = app.transport.chords.unsealed()
    assert entry.group_id == "g"


def test_stamped_workflow_is_revoked_by_its_stamp(server: Server) -> None:
    with (
        greenq_worker(server.url),
        closing(Greenq("sender", broker=server.url, set_as_current=False)) as app,
    ):
        app.control.revoke_by_stamped_headers({"customer": ["c-17"]}, reply=True, timeout=5)
        sig = group(app.signature("shared.add", (1, 1)), app.signature("shared.add", (2, 2)))
        sig |= app.signature("shared.total")
        other = sig.clone()
        sig.stamp(customer="c-17")
        handle = sig.delay()
        with pytest.raises(ChordError):
            handle.get(timeout=WAIT_S)
        states = [member.state for member in handle.parent.results]
        assert states == ["REVOKED", "REVOKED"]
        other.stamp(customer="c-18")
        assert other.delay().get(timeout=WAIT_S) == 6


def test_task_sees_its_stamps_and_its_place(server: Server) -> None:
    with (
        greenq_worker(server.url),
        closing(Greenq("sender", broker=server.url, set_as_current=False)) as app,
    ):
        sig = app.signature("shared.add", (1, 1)) | app.signature("shared.inspect_request")
        handle = sig.delay()
        seen = handle.get(timeout=WAIT_S)
        first = handle.parent.id
        assert (seen["root_id"], seen["parent_id"], seen["args"]) == (first, first, [2])


def test_chord_without_results_is_refused_before_anything_is_sent(server: Server) -> None:
    with closing(Greenq("none", broker=server.url, backend="disabled://")) as app:
        add = app.task(name="add")(max)
        for header in ([add.s(1, 1)], iter([add.s(1, 1)])):
            with pytest.raises(ResultsDisabled, match="a chord collects results"):
                chord(header, add.s(1)).delay()
        assert server.client.llen("celery") == 0
        group(add.s(1, 1)).delay()
        assert server.client.llen("celery") == 1
