"""The second level of autoscaling: workers start and drain processes of their supervisord group."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenq import Greenq
from greenq.protocol.keys import Keys
from greenq.transport.client import Client
from greenq.transport.group_store import GroupStore, LoadReport
from tests.servers import Server, greenq_worker
from tests.supervisord import PATIENCE_S, ledger, ledger_pids, supervisord
from tests.support import wait_until

KEYS = Keys()
QUICK = {
    "worker_processes_interval": 0.3,
    "worker_processes_grow_after": 1.5,
    "worker_processes_keepalive": 4.0,
}
SPARE = "greenq:greenq-more-0"
IDLE = LoadReport(busy=0.0, running=0, waiting=0, draining=False)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_saturated_hub_gets_a_second_process_which_is_drained_after(server: Server) -> None:
    """The promise, with a ledger: nothing that the second process took is lost or runs twice."""
    with supervisord(server, app="ledger_app", settings=QUICK) as supervisor:
        app = Greenq("sender", broker=server.url)
        count = 0
        assert supervisor.state(SPARE) == "STOPPED"

        # Until it has lived for `startsecs`, supervisord says STARTING, even if it runs tasks.
        while len(ledger_pids(server)) < 2 or supervisor.state(SPARE) == "STARTING":
            assert count < 60_000, "no second process runs any tasks"
            for _ in range(500):
                app.send_task("ledger.burn", (str(count), 0.002), ignore_result=True)
                count += 1
            wait_until(lambda: server.client.llen("celery") < 500, PATIENCE_S)

        assert supervisor.state(SPARE) == "RUNNING"
        assert "starting process greenq-more-0: hubs busy for" in supervisor.log()
        wait_until(lambda: len(ledger(server)) == count, PATIENCE_S)
        wait_until(lambda: supervisor.state(SPARE) == "STOPPED", PATIENCE_S)
        server.wait_settled()
        assert set(ledger(server).values()) == {1}
        said = supervisor.log() + supervisor.log("greenq-more-0")
        assert "draining process greenq-more-0: one process fewer would have been enough" in said
        assert "stopping process greenq-more-0: it has drained" in said
        assert supervisor.state("greenq:greenq-0") == "RUNNING"


def test_a_process_is_not_stopped_while_its_tasks_run(server: Server) -> None:
    with supervisord(server, app="ledger_app", settings=QUICK) as supervisor:
        app = Greenq("sender", broker=server.url)
        supervisor.control("start", SPARE)
        supervisor.wait_running("greenq-more-0")
        for number in range(40):
            app.send_task("ledger.wait", (str(number),), ignore_result=True)
        second = supervisor.pid(SPARE)
        wait_until(lambda: len(ledger(server)) == 40, PATIENCE_S)
        assert ledger_pids(server)[second], "the second process runs nothing"

        wait_until(lambda: "draining: this worker" in supervisor.log("greenq-more-0"), PATIENCE_S)
        app.send_task("ledger.nap", ("meanwhile", 0.0)).get(timeout=20)

        assert supervisor.state(SPARE) == "RUNNING"
        server.client.set("gate", 1)
        wait_until(lambda: supervisor.state(SPARE) == "STOPPED", PATIENCE_S)
        server.wait_settled()
        assert set(ledger(server).values()) == {1}


def test_without_supervisord_it_says_what_is_missing(server: Server) -> None:
    with pytest.raises(AssertionError) as failed, greenq_worker(server.url, "--processes", "2,1"):
        pass

    assert "supervisord does not run this process" in str(failed.value)
    assert "greenq deploy supervisord" in str(failed.value)


# --- what they share on the server ----------------------------------------------------------------


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    made = Client(server.url)
    yield made
    made.close()


def store(client: Client, process: str, group: str = "g") -> GroupStore:
    return GroupStore(client, KEYS, group=group, process=process, interval_s=1.0)


def test_the_first_one_leads_until_it_leaves_and_sees_all_reports(client: Client) -> None:
    one, two = store(client, "one"), store(client, "two")
    busy = LoadReport(busy=0.9, running=3, waiting=2, draining=False)

    assert one.report(IDLE).leads
    assert two.report(busy) == (False, frozenset(), {})
    assert one.report(IDLE) == (True, frozenset(), {"one": IDLE, "two": busy})
    one.leave()
    assert two.report(busy) == (True, frozenset(), {"two": busy})


def test_a_silent_leader_is_replaced_and_its_report_expires(client: Client, server: Server) -> None:
    one, two = store(client, "one"), store(client, "two")
    one.report(IDLE)
    leader, reports = KEYS.group_leader("g"), KEYS.group_reports("g")

    assert 0 < server.client.pttl(leader) <= 6000
    server.client.delete(leader)
    server.client.hset(reports, "one", "1.5 {}")

    assert two.report(IDLE) == (True, frozenset(), {"two": IDLE})
    assert server.client.hkeys(reports) == [b"two"]


def test_only_the_leader_marks_and_a_marked_one_gives_up_the_lead(client: Client) -> None:
    one, two = store(client, "one"), store(client, "two")
    one.report(IDLE)
    two.report(IDLE)

    assert not two.mark("one", drain=True)
    assert one.mark("one", drain=True)

    assert one.report(IDLE) == (False, {"one"}, {})
    answer = two.report(IDLE)
    assert (answer.leads, answer.draining) == (True, {"one"})
    assert two.mark("one", drain=False)
    assert one.report(IDLE) == (False, frozenset(), {})


def test_a_process_that_left_starts_without_its_mark(client: Client) -> None:
    one, two = store(client, "one"), store(client, "two")
    one.report(IDLE)
    two.report(IDLE)
    one.mark("two", drain=True)

    two.leave()

    assert one.report(IDLE).draining == frozenset()


def test_groups_know_nothing_of_each_other(client: Client) -> None:
    assert store(client, "one", "g").report(IDLE).leads
    assert store(client, "one", "h").report(IDLE).leads


def test_the_report_of_another_version_is_ignored(client: Client, server: Server) -> None:
    one = store(client, "one")
    now = server.client.time()[0]
    server.client.hset(KEYS.group_reports("g"), "new", f'{now} {{"load": 1}}')

    assert set(one.report(IDLE).reports) == {"one"}
