"""The table of docs/workflow-errors.md, row by row: who is called, and what ends how."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from greenq import Greenq, chain, chord, group
from tests.servers import Server, greenq_worker
from tests.support import wait_until

WAIT_S = 20


class Flow:
    """A client, and the server on which one greenq worker runs its workflows."""

    def __init__(self, app: Greenq, server: Server) -> None:
        self.app = app
        self.server = server

    def s(self, task: str, *args: Any, task_id: str | None = None) -> Any:
        sig = self.app.signature(f"flow.{task}", args=args)
        return sig.set(task_id=task_id) if task_id else sig

    @property
    def errback(self) -> Any:
        return self.s("old_errback")

    def send(self, whole: Any, **options: Any) -> None:
        """Send a workflow, and wait until all of it is over."""
        # A success stays, and these tests use the same ids.
        old = list(self.server.client.scan_iter("celery-task*"))
        self.server.client.delete("seen", *old)
        whole.apply_async(**options)
        self.wait()

    def wait(self) -> None:
        """Wait until no message is left; each hand-over is one step, so none is overlooked."""
        wait_until(self._is_over, WAIT_S)

    def _is_over(self) -> bool:
        asked = self.server.client.pipeline()
        # Messages that were acknowledged before their run are in the begun tags of their worker.
        asked.llen("celery").llen("greenq.inbox.celery").hlen("unacked").keys("greenq.begun.*")
        return not any(asked.execute())

    def called(self) -> list[str]:
        """Return the ids with which errbacks were called."""
        lines = [line.decode().split() for line in self.server.client.lrange("seen", 0, -1)]
        return [words[1] for words in lines if words[0].endswith("errback")]

    def ran(self) -> int:
        lines = self.server.client.lrange("seen", 0, -1)
        return sum(not line.split()[0].endswith(b"errback") for line in lines)

    def ends(self, *task_ids: str) -> list[str]:
        """Return the state and the exception of each task, None for none stored."""
        found = []
        for task_id in task_ids:
            meta = json.loads(self.server.client.get(f"celery-task-meta-{task_id}") or "{}")
            result = meta.get("result")
            error = result.get("exc_type") if isinstance(result, dict) else None
            found.append(f"{meta.get('status')} {error}" if error else str(meta.get("status")))
        return found


@pytest.fixture(scope="module", params=[True, False], ids=["late ack", "early ack"])
def flow(request: pytest.FixtureRequest, shared_server: Server) -> Iterator[Flow]:
    shared_server.flush()
    app = Greenq("client", broker=shared_server.url, set_as_current=False)
    settings = {"task_acks_late": request.param}
    with greenq_worker(shared_server.url, "-c", "4", app="workflows_greenq", settings=settings):
        yield Flow(app, shared_server)
    app.close()


def test_a_task(flow: Flow) -> None:
    flow.send(flow.s("fail", task_id="a"), link_error=flow.errback, link=flow.s("echo"))
    assert flow.called() == ["a"]
    assert flow.ends("a") == ["FAILURE ValueError"]
    assert flow.ran() == 1


def test_a_task_with_an_errback_that_takes_the_error(flow: Flow) -> None:
    flow.send(flow.s("fail", task_id="a"), link_error=flow.s("new_errback"))
    assert flow.called() == ["a"]


def test_a_step_of_a_chain(flow: Flow) -> None:
    rest = group(flow.s("add", 1, task_id="c"), flow.s("add", 2, task_id="d"))
    inner = chord([flow.s("add", 3, task_id="e")], flow.s("total", task_id="f"))
    steps = [flow.s("add", 1, task_id="a"), flow.s("fail", task_id="b"), rest]
    flow.send(chain(*steps), link_error=flow.errback)
    assert flow.called() == ["b"]
    assert flow.ends("a", "b", "c", "d") == ["SUCCESS", *["FAILURE ValueError"] * 3]

    flow.send(chain(flow.s("fail", task_id="b"), inner, flow.s("add", task_id="g")))
    assert flow.ends("e", "f", "g") == ["FAILURE ValueError"] * 3


def test_a_task_in_a_plain_group(flow: Flow) -> None:
    members = [flow.s("fail", task_id="a"), flow.s("add", 1, task_id="b")]
    whole = group(*members, flow.s("fail", task_id="c"))
    whole.link_error(flow.errback)
    flow.send(whole)
    assert sorted(flow.called()) == ["a", "c"]
    assert flow.ends("a", "b", "c") == ["FAILURE ValueError", "SUCCESS", "FAILURE ValueError"]


def test_a_task_in_a_header(flow: Flow) -> None:
    header = [flow.s("add", 1, task_id="a"), flow.s("fail", task_id="b").on_error(flow.errback)]
    body = flow.s("total", task_id="c").on_error(flow.errback)
    flow.send(chain(chord(header, body), flow.s("add", task_id="d")))
    assert sorted(flow.called()) == ["b", "c"]
    assert flow.ends("a", "b", "c", "d") == [
        "SUCCESS", "FAILURE ValueError", "FAILURE ChordError", "FAILURE ChordError",
    ]  # fmt: skip
    assert not flow.server.client.exists("greenq.unsealed")


def test_a_chain_in_a_header(flow: Flow) -> None:
    steps = chain(flow.s("fail", task_id="a").on_error(flow.errback), flow.s("add", task_id="b"))
    body = flow.s("total", task_id="c").on_error(flow.errback)
    flow.send(chord([steps, flow.s("add", 1, task_id="d")], body))
    assert sorted(flow.called()) == ["a", "c"]
    assert flow.ends("a", "b", "c", "d") == [
        "FAILURE ValueError", "FAILURE ValueError", "FAILURE ChordError", "SUCCESS",
    ]  # fmt: skip


def test_the_body(flow: Flow) -> None:
    body = flow.s("fail", task_id="b").on_error(flow.errback)
    flow.send(chain(chord([flow.s("add", 1, task_id="a")], body), flow.s("add", task_id="c")))
    assert flow.called() == ["b"]
    assert flow.ends("a", "b", "c") == ["SUCCESS", "FAILURE ValueError", "FAILURE ValueError"]


def test_a_chord_in_a_header(flow: Flow) -> None:
    inner = chord(
        [flow.s("fail", task_id="a")], flow.s("total", task_id="b").on_error(flow.errback)
    )
    outer = flow.s("total", task_id="c").on_error(flow.errback)
    flow.send(chord([inner, flow.s("add", 1, task_id="d")], outer))
    assert sorted(flow.called()) == ["b", "c"]
    assert flow.ends("a", "b", "c", "d") == [
        "FAILURE ValueError", "FAILURE ChordError", "FAILURE ChordError", "SUCCESS",
    ]  # fmt: skip


def test_a_body_that_is_a_chain_or_a_group(flow: Flow) -> None:
    steps = chain(flow.s("total", task_id="b").on_error(flow.errback), flow.s("add", task_id="c"))
    flow.send(chord([flow.s("fail", task_id="a")], steps))
    assert len(flow.called()) == 1
    assert flow.ends("b", "c") == ["FAILURE ChordError"] * 2

    members = group(
        flow.s("total", task_id="d").on_error(flow.errback),
        flow.s("total", task_id="e").on_error(flow.errback),
    )
    flow.send(chord([flow.s("fail", task_id="a2")], members))
    assert sorted(flow.called()) == ["d", "e"]
    assert flow.ends("d", "e") == ["FAILURE ChordError"] * 2


@pytest.mark.parametrize(
    ("how", "ends", "called"),
    [
        ("expired", ["REVOKED TaskRevokedError", "REVOKED TaskRevokedError"], ["z"]),
        ("unknown", ["FAILURE NotRegistered", "FAILURE NotRegistered"], ["x", "z"]),
        ("ignored", ["None", "FAILURE Ignore"], ["z"]),
    ],
)
def test_how_a_header_task_can_end(
    flow: Flow, how: str, ends: list[str], called: list[str]
) -> None:
    task = {"expired": "add", "unknown": "unheard_of", "ignored": "ignored"}[how]
    first = flow.s(task, 1, task_id="x").on_error(flow.errback)
    if how == "expired":
        first.set(expires=-1)
    steps = chain(first, flow.s("add", task_id="y"))
    body = flow.s("total", task_id="z").on_error(flow.errback)
    flow.send(chord([steps, flow.s("add", 1)], body))

    assert flow.ends("x", "y") == ends
    assert flow.ends("z") == ["FAILURE ChordError"]
    assert sorted(flow.called()) == called


@pytest.mark.parametrize("is_last", [False, True])
def test_a_header_message_that_cannot_be_read(flow: Flow, is_last: bool) -> None:
    header = [flow.s("add", 1, task_id="a"), flow.s("add", 2, task_id="b")]
    if is_last:
        header[0].set(queue="other")
    whole = chord(header, flow.s("total", task_id="z").on_error(flow.errback))
    client = flow.server.client
    client.delete("seen", "greenq.dead.celery", *client.scan_iter("celery-task*"))
    # Nothing takes from this queue: there the message is damaged.
    whole.apply_async(queue="damaged")
    texts = client.lrange("damaged", 0, -1)
    client.delete("damaged")
    damaged = texts[-1].replace(b"application/json", b"application/unheard-of")
    order = [texts[0], damaged] if is_last else [damaged, texts[0]]
    for text in order:
        client.lpush("celery", text)
        flow.wait()

    assert client.llen("greenq.dead.celery") == 1
    if not is_last:
        assert flow.ends("a", "b", "z") == [
            "FAILURE ContentDisallowed", "SUCCESS", "FAILURE ChordError",
        ]  # fmt: skip
        assert flow.called() == ["z"]
        return
    assert flow.ends("z") == ["None"]
    # It can be read now: it brings what its chord's body is.
    client.delete("greenq.dead.celery")
    client.lpush("celery", texts[-1])
    flow.wait()
    assert flow.ends("z") == ["FAILURE ChordError"]
