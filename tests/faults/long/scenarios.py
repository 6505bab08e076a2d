"""The scenarios: each causes one kind of fault and notes the broken promises."""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from greenq.config.settings import TaskConfig, WorkerConfig
from greenq.errors import GreenqError
from greenq.result import AsyncResult
from tests.faults.long.lab import Lab, wait_quietly
from tests.faults.long.ledger import Cut
from tests.faults.long.workflows import workflows
from tests.servers import Process
from tests.support import wait_until

RATE = 100.0
SHORT_S = (0.05, 0.5)

_LEASE_S = WorkerConfig().worker_lease

# What is promised.
_AFTER_KILL_S = 5.0
_AFTER_COLD_STOP_S = 1.0
_AFTER_RETURN_S = 2.0
_CALL_S = 5.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table.

    Attributes:
        name: for `--only`; its group is the part before the dash.
        run: causes the faults.
        promise: what must hold, as shown.
        fsync: how the server writes its file.
        in_quick: also run by `--quick`.
    """

    name: str
    run: Callable[[Lab], None]
    promise: str
    fsync: str = "everysec"
    in_quick: bool = True


def number_of(result: AsyncResult[int]) -> int:
    """Return the number of a result's task."""
    return int(result.id.removeprefix("task-"))


def wait_until_trusted(lab: Lab) -> None:
    """Wait for the end of the grace period in which ended leases do not count as deaths."""
    wait_until(lambda: lab.server.client.info("server")["uptime_in_seconds"] > 2 * _LEASE_S + 1, 20)


# --- kill -9 --------------------------------------------------------------------------------------


def random_kills(lab: Lab, kills: int | None = None) -> None:
    """Kill a worker repeatedly under load; the next has its name and recovers at once."""
    kills = kills or (5 if lab.quick else 20)
    worker, cut_off = lab.worker("one"), 0
    with lab.load(RATE, SHORT_S):
        for kill in range(kills):
            lab.say(f"kill {kill + 1} of {kills}")
            time.sleep(lab.choose.uniform(0.2, 3.0))
            dead, _ = worker, lab.kill(worker)
            worker, spawned_s = lab.spawn("one"), time.monotonic()
            lab.ledger.read()
            cut_off += len(lab.ledger.running(dead.pid))
    lab.figures["running when killed"] = cut_off
    settled_s = lab.settle(120) - spawned_s
    lab.recoveries_s.append(settled_s)
    # What was running at two kills runs alone, one after the other.
    alone = worker.text.count(" runs alone: ")
    lab.figures["ran alone at last"] = alone
    lab.expect_within(
        settled_s, _AFTER_KILL_S + alone * SHORT_S[1], "all executed after the last restart"
    )
    lab.expect_cut_runs_only()


def orphans_move(lab: Lab, rounds: int | None = None) -> None:
    """Kill one of two workers repeatedly; what it held starts on the other, even a blocked one."""
    rounds = rounds or (2 if lab.quick else 10)
    survivor = lab.worker("survivor", "-Q", "celery,own-survivor")
    wait_until_trusted(lab)
    for number in range(rounds):
        blocked = number % 2 == 1
        lab.say(f"kill {number + 1} of {rounds}{', the survivor blocked' if blocked else ''}")
        victim = lab.worker(f"victim{number}")
        _hold_on_all(lab, survivor, victim)
        if blocked:
            lab.send(3.0, task="entry_burn", queue="own-survivor")
            survivor.wait_text("ledger.entry_burn")
        killed_s = lab.kill(victim)
        lab.ledger.read()
        lab.recovered(lab.ledger.running(victim.pid), victim, killed_s, _AFTER_KILL_S)
    lab.settle()
    lab.expect_cut_runs_only()


def _hold_on_all(lab: Lab, *workers: Process, seconds: float = 2.0) -> None:
    """Send tasks until each worker runs some of them."""

    def held_by_all() -> bool:
        lab.send(seconds)
        lab.ledger.read()
        return all(lab.ledger.running(worker.pid) for worker in workers)

    if not lab.wait(held_by_all, 10, "no task reached one of the idle workers"):
        return
    lab.send_many(30, seconds)
    sent = len(lab.ledger.sent)
    wait_quietly(lambda: lab.started() == sent, 5)


def large_orphans(lab: Lab, rounds: int | None = None) -> None:
    """Repeatedly kill a worker whose messages are too large for one answer."""
    rounds = rounds or (1 if lab.quick else 6)
    survivor = None
    for number in range(rounds):
        lab.say(f"kill {number + 1} of {rounds}")
        victim = lab.worker(f"victim{number}", "-c", "60")
        if survivor is not None:
            survivor.stop()
        # A header is as large as an argument would be, and the task need not handle it.
        lab.send_many(60, 8.0, headers={"load": "x" * 2**20})
        lab.wait(partial(_runs, lab, victim, 60), 15, "the large tasks did not start")
        survivor = lab.worker(f"survivor{number}", "-c", "60")
        wait_until_trusted(lab)
        killed_s = lab.kill(victim)
        lab.ledger.read()
        lab.recovered(lab.ledger.running(victim.pid), victim, killed_s, _AFTER_KILL_S)
        lab.settle()
        lab.expect("lease" not in survivor.text, "the survivor's lease was in danger")
    lab.expect_cut_runs_only()


def _runs(lab: Lab, worker: Process, count: int) -> bool:
    lab.ledger.read()
    return len(lab.ledger.running(worker.pid)) >= count


def _all_executed(lab: Lab) -> bool:
    lab.ledger.read()
    return lab.ledger.sent.keys() <= lab.ledger.executed


# How many worker deaths bury a message.
_MOST_DEATHS = TaskConfig().task_max_deliveries


def guilty(lab: Lab, rounds: int | None = None) -> None:
    """Send tasks that kill their worker among good ones; a supervisor restarts it each time."""
    rounds = rounds or (2 if lab.quick else 10)
    worker, deaths = lab.spawn("one"), 0
    for number in range(rounds):
        lab.say(f"culprit {number + 1} of {rounds}")
        lab.send_many(150, 0.02)
        culprit = lab.send(0.0, task="entry_crash")
        lab.send_many(150, 0.02)
        # It never ends.
        del lab.ledger.sent[number_of(culprit)]
        deadline_s = time.monotonic() + 30
        while not (lab.server.dead_letters() and _all_executed(lab)):
            if time.monotonic() > deadline_s:
                break
            if not worker.alive:
                lab.ledger.cuts.append(Cut(worker.pid, time.monotonic()))
                deaths += 1
                worker = lab.spawn("one")
            time.sleep(0.05)
        buried = [letter.task_id for letter in lab.server.dead_letters()]
        if buried != [culprit.id]:
            lab.problems.append(f"{len(buried)} are buried instead of the culprit alone")
            break
        lab.server.client.delete("greenq.dead.celery")
    lab.figures["deaths"] = deaths
    lab.expect(deaths == rounds * _MOST_DEATHS, f"{deaths} workers died, not 5 of each culprit")
    lab.settle()


# --- no fault at all ------------------------------------------------------------------------------


def ends_together(lab: Lab) -> None:
    """Run a thousand tasks that end simultaneously, in two waves."""
    count = 200 if lab.quick else 1000
    lab.worker("one", "-c", str(count // 2))
    lab.send_many(count, 1.0)
    lab.settle(60)
    lab.expect_single_runs()


def many_short(lab: Lab) -> None:
    """Run short tasks as fast as the worker can, with a thousand slots."""
    count, began_s = (5_000 if lab.quick else 100_000), time.monotonic()
    lab.spawn("one", "-c", "1000", loglevel="WARNING")
    for sent in range(0, count, 1000):
        lab.say(f"{sent:,} of {count:,} sent")
        lab.send_many(1000, 0.0)
    ended_s = lab.settle(180)
    lab.figures["tasks per second"] = round(count / (ended_s - began_s))
    lab.expect_single_runs()


# --- time passes ----------------------------------------------------------------------------------


def outlasting(lab: Lab) -> None:
    """Run tasks longer than the lease and the visibility timeout, with one hub blocked."""
    lease_s, blocked_s = (1.0, 5.0) if lab.quick else (3.0, 15.0)
    settings = {
        "broker_transport_options": {"visibility_timeout": 2.0},
        "worker_lease": lease_s,
    }
    first = lab.worker("first", settings=settings)
    second = lab.worker("second", "-Q", "celery,own-second", settings=settings)
    late_s = 4 * max(lease_s, 2.0)
    for countdown in (late_s, late_s + 0.5):
        lab.send_many(10, 0.1, countdown=countdown)
    _hold_on_all(lab, first, second, seconds=late_s + 1)
    lab.send(blocked_s, task="entry_burn", queue="own-second")
    for number in range(3):
        lab.say(f"worker {number + 3} joins")
        lab.worker(f"joining{number}", settings=settings)
        time.sleep(late_s / 4)
    lab.settle(blocked_s + late_s + 15)
    lab.expect_single_runs()


# --- the server goes away -------------------------------------------------------------------------


def server_away(lab: Lab, how: str) -> None:
    """Take the server away for two seconds under load."""
    lab.worker("one")
    lab.worker("two")
    long = lab.send_many(20, 4.0)
    lab.wait(lambda: lab.started() == 20, 10, "the long tasks did not start")
    with ThreadPoolExecutor(20) as waiters, lab.load(RATE, SHORT_S):
        results = [waiters.submit(_result_or_error, result) for result in long]
        time.sleep(1.0)
        lab.say(f"the server goes: {how}")
        away_s = time.monotonic()
        returned_s = _away(lab, how)

        def runs_again() -> list[int]:
            lab.ledger.read()
            return [
                run.number
                for run in lab.ledger.all_runs
                if lab.ledger.sent.get(run.number, 0) > returned_s
            ]

        lab.wait(runs_again, 15, "no new task ran after the server's return")
        first_s = min(
            (lab.ledger.runs[number][0].start_s for number in runs_again()), default=returned_s
        )
        lab.recoveries_s.append(first_s - returned_s)
        lab.expect_within(
            first_s - returned_s, _AFTER_RETURN_S, "the first new task started after the return"
        )
        answers = [result.result() for result in results]
    missing = [str(answer) for answer in answers if not isinstance(answer, int)]
    lab.expect(not missing, f"{len(missing)} results in flight did not arrive: {missing[:2]}")
    lab.settle()
    lab.figures["longest client call, s"] = round(lab.longest_call_s, 2)
    lab.expect_within(lab.longest_call_s, _CALL_S, "the longest call of a client")
    lab.figures["sending failed"] = len(lab.ledger.doubtful)
    if how == "power cut":
        # The last second before may be lost by design: it was not yet on the disk.
        forgiven = {
            number
            for number in lab.ledger.lost
            if away_s - 1.2 < lab.ledger.sent[number] < returned_s
        }
        lab.figures["forgotten with the last second"] = len(forgiven)
        for number in forgiven:
            del lab.ledger.sent[number]
    else:
        lab.expect_cut_runs_only()


def _result_or_error(result: AsyncResult[int]) -> int | GreenqError:
    try:
        return result.get(timeout=20)
    except GreenqError as exc:
        return exc


def _away(lab: Lab, how: str) -> float:
    """End the server, start it again after two seconds, and return when it was back."""
    if how == "stop":
        lab.server.stop()
    elif how == "kill":
        lab.server.kill()
    else:
        size_bytes = lab.server.log_bytes
        time.sleep(1.0)
        lab.server.kill()
        lab.server.cut_log(size_bytes)
    time.sleep(2.0)
    lab.server.start()
    return time.monotonic()


# --- signals --------------------------------------------------------------------------------------


class Ending(NamedTuple):
    """How a worker is stopped.

    Attributes:
        signals: sent one after the other.
        exit_code: what it must end with.
        cold: its running tasks are requeued.
    """

    signals: tuple[signal.Signals, ...]
    exit_code: int
    cold: bool


TERM, QUIT, INT, KILL = signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGKILL

ENDINGS = {
    "term": Ending((TERM,), 0, cold=False),
    "int": Ending((INT,), 0, cold=False),
    "term-term": Ending((TERM, TERM), 1, cold=True),
    "quit": Ending((QUIT,), 1, cold=True),
    "term-kill": Ending((TERM, KILL), -9, cold=True),
}


def stopped(lab: Lab, ending: Ending) -> None:
    """Stop one of two workers that holds 200 tasks: running, waiting and with an ETA."""
    settings = {"worker_prefetch_multiplier": 2}
    victim = lab.worker("victim", "-c", "60", settings=settings)
    if KILL in ending.signals:
        wait_until_trusted(lab)
    lab.send_many(40, 0.2, countdown=6.0)
    # The first to have ended before the signal, the others not.
    lab.send_many(20, 0.5)
    lab.send_many(100, 5.0)
    lab.wait(lambda: lab.started() >= 80, 10, "the tasks did not start")
    other = lab.worker("other", "-c", "300")
    lab.send_many(40, 5.0)
    lab.wait(lambda: lab.ledger.running(other.pid) or lab.started() >= 120, 5, "the other is idle")
    lab.ledger.read()
    running = {run.number for run in lab.ledger.running(victim.pid)}
    waiting = {number for number in lab.ledger.sent if number >= 40} - {
        number for number, runs in lab.ledger.runs.items() if runs
    }
    lab.figures |= {"running": len(running), "waiting": len(waiting)}
    lab.say(" then ".join(number.name for number in ending.signals))
    first_s = last_s = time.monotonic()
    for place, number in enumerate(ending.signals):
        # Two signals at once would count as one.
        time.sleep(0.3 if place else 0.0)
        victim.send_signal(number)
        last_s = time.monotonic()
    if ending.cold:
        # A cold stop interrupts running tasks, as a kill does.
        lab.ledger.cuts.append(Cut(victim.pid, last_s))
        within_s = _AFTER_KILL_S if KILL in ending.signals else _AFTER_COLD_STOP_S
        lab.recovered(running, victim, last_s, within_s)
    lab.recovered(waiting, victim, first_s, _AFTER_COLD_STOP_S)
    code = victim.wait_exit(40)
    lab.expect(code == ending.exit_code, f"the exit code is {code}, not {ending.exit_code}")
    lab.settle()
    lab.expect_cut_runs_only()
    again = lab.ledger.ran_after_end
    lab.expect(not again, f"{len(again)} finished tasks ran again")


def frozen(lab: Lab) -> None:
    """Freeze a worker for longer than its lease, then let it go on."""
    frozen_s = 5.0 if lab.quick else 8.0
    # Its guard does not keep its lease.
    settings = {"worker_prefetch_multiplier": 2, "worker_silence_limit": 0.0}
    sleeper = lab.worker("sleeper", "-Q", "celery,own-sleeper", "-c", "40", settings=settings)
    wait_until_trusted(lab)
    lab.send_many(20, 0.2, countdown=3.0)
    lab.send_many(80, 2.0)
    lab.wait(lambda: lab.started() == 40, 10, "the tasks did not start")
    other = lab.worker("other", "-c", "200")
    lab.send_many(10, 2.0)
    lab.wait(lambda: lab.started() == 50, 5, "the other is idle")
    lab.ledger.read()
    running = {run.number for run in lab.ledger.running(sleeper.pid)}
    held = {number for number in lab.ledger.sent if 20 <= number < 100}
    sleeper.send_signal(signal.SIGSTOP)
    lab.ledger.cuts.append(Cut(sleeper.pid, stopped_s := time.monotonic()))
    lab.say(f"frozen for {frozen_s:g} s")
    lab.recovered(held, sleeper, stopped_s, _AFTER_KILL_S)
    time.sleep(max(0.0, stopped_s + frozen_s - time.monotonic()))
    sleeper.send_signal(signal.SIGCONT)
    lab.say("thawed")
    thawed_s = time.monotonic()
    sent = lab.send_many(20, 0.1, queue="own-sleeper")
    own = {number_of(result) for result in sent}
    lab.wait(lambda: lab.started() and own <= lab.ledger.executed, 15, "the thawed worker is idle")
    lab.figures["works again after, s"] = round(time.monotonic() - thawed_s, 2)
    lab.settle()
    lab.figures["running when frozen"] = len(running)
    lab.expect_cut_runs_only()
    lab.expect(other.alive and sleeper.alive, "a worker ended")


def all_frozen(lab: Lab) -> None:
    """Freeze all workers for longer than their lease, as when a machine sleeps."""
    # A sleeping machine's guard processes would sleep, too.
    settings = {"worker_silence_limit": 0.0}
    workers = [lab.worker(f"sleeper{number}", "-c", "40", settings=settings) for number in range(3)]
    wait_until_trusted(lab)
    lab.send_many(10, 0.2, countdown=3.0)
    _hold_on_all(lab, *workers, seconds=3.0)
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    time.sleep(5.0)
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
        # The first to wake finds the others' leases ended.
        time.sleep(0.2)
    thawed_s = time.monotonic()
    sent = lab.send_many(5, 0.1)
    numbers = {number_of(result) for result in sent}
    lab.wait(lambda: lab.started() and numbers <= lab.ledger.executed, 15, "nothing runs")
    lab.recoveries_s.append(time.monotonic() - thawed_s)
    lab.settle()
    lab.expect_single_runs()


def silent(lab: Lab, how: str) -> None:
    """Freeze a worker completely for half a minute while its processes live and others are idle."""
    silent_s = 12.0 if lab.quick else 30.0
    sleeper = lab.worker("sleeper", "-c", "40", "-Q", "celery,own-sleeper")
    lab.send_many(20, 3.0, queue="own-sleeper")
    lab.wait(lambda: lab.started() == 20, 10, "the tasks did not start")
    others = [lab.worker(f"other{place}", "-Q", "celery,own-sleeper") for place in range(2)]
    began_s = time.monotonic()
    lab.say(f"silent for {silent_s:g} s: {how}")
    if how == "stop":
        sleeper.send_signal(signal.SIGSTOP)
        time.sleep(silent_s)
        sleeper.send_signal(signal.SIGCONT)
    else:
        # Whichever takes it, one worker is frozen and another may take it for dead.
        lab.send(silent_s, task="entry_gil", queue="own-sleeper")
    lab.settle(silent_s + 15)
    lab.figures["all done after, s"] = round(time.monotonic() - began_s, 1)
    lab.expect_single_runs()
    lab.expect(all(each.alive for each in (sleeper, *others)), "a worker ended")


def memory_full(lab: Lab) -> None:
    """Make the server refuse everything that needs memory for three seconds, under load."""
    lab.worker("one")
    lab.worker("two")
    with lab.load(RATE, SHORT_S):
        time.sleep(2.0)
        lab.say("no memory left")
        lab.server.client.config_set("maxmemory", "1mb")
        time.sleep(3.0)
        lab.server.client.config_set("maxmemory", "0")
        again_s, started = time.monotonic(), lab.started()
        lab.wait(lambda: lab.started() > started, 15, "nothing ran after the memory was back")
        lab.recoveries_s.append(time.monotonic() - again_s)
        time.sleep(2.0)
    lab.figures["sending failed"] = len(lab.ledger.doubtful)
    lab.figures["longest client call, s"] = round(lab.longest_call_s, 2)
    lab.settle()
    lab.expect_single_runs()


# --- everything at once ---------------------------------------------------------------------------


class Sample(NamedTuple):
    """The resources of a process at one moment."""

    rss_mb: float
    files: int
    sockets: int


def sample_of(pid: int) -> Sample:
    """Read the resources of a process from /proc."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    targets = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed by now.
        with suppress(FileNotFoundError):
            targets.append(os.readlink(entry))
    sockets = sum(1 for target in targets if target.startswith("socket:"))
    return Sample(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(targets), sockets)


# The growth allowed beyond a tenth, between the first and the last quarter.
_GROWTH = {"rss_mb": 5, "files": 2, "sockets": 2}


def soak(lab: Lab) -> None:
    """Cause occasional faults for a long time; one worker is never killed and must not grow."""
    length_s, every_s = (60.0, 9.0) if lab.quick else (600.0, 20.0)
    # Half of the ETAs are beyond this, and wait on the server.
    settings = {"task_eta_horizon": 4.0}
    steady = lab.worker("steady", settings=settings)
    mortal = [lab.worker(f"mortal{place}", settings=settings) for place in range(2)]

    def kill() -> None:
        place = lab.choose.randrange(len(mortal))
        lab.kill(mortal[place])
        mortal[place] = lab.worker(f"mortal{place}", settings=settings)

    def freeze() -> None:
        worker = lab.choose.choice([steady, *mortal])
        worker.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        worker.send_signal(signal.SIGCONT)

    def restart() -> None:
        lab.server.stop()
        lab.server.start()

    faults = {
        "kill -9": kill,
        "CLIENT KILL": lambda: lab.server.client.execute_command("CLIENT KILL TYPE normal"),
        "server restart": restart,
        "SIGSTOP for 2 s": freeze,
        "SCRIPT FLUSH": lambda: lab.server.client.script_flush(),
    }
    names = [name for _ in range(100) for name in lab.choose.sample(sorted(faults), len(faults))]
    samples: list[Sample] = []
    end_s = time.monotonic() + length_s
    with lab.load(RATE, SHORT_S, countdown=(0.5, 8.0)):
        for number in itertools.count():
            next_s = time.monotonic() + every_s
            while time.monotonic() < min(next_s, end_s):
                samples.append(sample_of(steady.pid))
                time.sleep(1.0)
            if time.monotonic() >= end_s:
                break
            lab.say(f"{end_s - time.monotonic():.0f} s left: {names[number]}")
            faults[names[number]]()
            lab.wait(partial(_runs_again, lab, time.monotonic()), 15, f"idle after {names[number]}")
    lab.settle()
    lab.figures |= {
        "faults": number, "sending failed": len(lab.ledger.doubtful),
        "longest client call, s": round(lab.longest_call_s, 2),
    }  # fmt: skip
    _expect_flat(lab, samples)
    again = lab.ledger.ran_after_end
    lab.figures["ran again after an end"] = len(again)


def _runs_again(lab: Lab, since_s: float) -> bool:
    """Return whether a task sent since then has started; note the time as a recovery."""
    lab.ledger.read()
    sent = [number for number, sent_s in lab.ledger.sent.copy().items() if sent_s > since_s]
    if not any(lab.ledger.runs.get(number) for number in sent):
        return False
    lab.recoveries_s.append(time.monotonic() - since_s)
    return True


def _expect_flat(lab: Lab, samples: list[Sample]) -> None:
    """Compare the last quarter of a worker's life with its first."""
    quarter = len(samples) // 4
    for field in Sample._fields:
        first, last = (
            statistics.median(getattr(sample, field) for sample in part)
            for part in (samples[:quarter], samples[-quarter:])
        )
        lab.figures[field] = f"{first:.0f} -> {last:.0f}"
        most = first * 1.1 + _GROWTH[field]
        lab.expect(last <= most, f"{field} grew from {first:.0f} to {last:.0f}")


_NONE_LOST = "nothing is lost, only what was running runs twice"

SCENARIOS = (
    Scenario("kills", random_kills, f"{_NONE_LOST}; all done soon after the last restart"),
    Scenario("orphans", orphans_move, f"{_NONE_LOST}; orphans start elsewhere within 5 s"),
    Scenario("large", large_orphans, "orphans of a megabyte start elsewhere within 5 s"),
    Scenario("guilty", guilty, "only a task that kills its worker is buried"),
    Scenario("nofault-together", ends_together, "each runs once"),
    Scenario("nofault-many", many_short, "each runs once"),
    Scenario("outlasting", outlasting, "each runs once, however long it takes"),
    Scenario("away-stop", partial(server_away, how="stop"), "nothing is lost; work within 2 s"),
    Scenario(
        "away-stop-always", partial(server_away, how="stop"), "the same", "always", in_quick=False
    ),
    Scenario("away-kill-always", partial(server_away, how="kill"), "the same", "always"),
    Scenario("away-kill", partial(server_away, how="kill"), "the same", in_quick=False),
    Scenario(
        "away-power", partial(server_away, how="power cut"),
        "no more is lost than the last second", in_quick=False,
    ),
    *(
        Scenario(
            f"signals-{name}", partial(stopped, ending=ending),
            "requeued tasks start elsewhere within 1 s, 5 s after a kill; ended ones never",
            in_quick=name != "int",
        )
        for name, ending in ENDINGS.items()
    ),
    Scenario("frozen", frozen, "its tasks run elsewhere; it goes on afterwards"),
    Scenario("frozen-all", all_frozen, "each runs once; all go on afterwards"),
    Scenario("silent-stop", partial(silent, how="stop"), "each runs once"),
    Scenario("silent-gil", partial(silent, how="GIL held"), "each runs once", in_quick=False),
    Scenario("memory", memory_full, "nothing is lost, each runs once"),
    Scenario("workflows", workflows, "each step is sent once; only what was running runs twice"),
    Scenario("soak", soak, "nothing is lost, nothing grows"),
)  # fmt: skip
