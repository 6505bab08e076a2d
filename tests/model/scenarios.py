"""The scenarios: some messages, one to three workers, and the faults that may occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.model.world import Site

ALL_FATES = ("lost", "dropped", "late", "slow")


@dataclass(frozen=True)
class Message:
    """One message: its task, its queue, and how each of its runs ends."""

    id: str
    task: str = "late"
    plan: tuple[str, ...] = ("ok",)
    queue: str = "q"
    eta_s: float | None = None
    later: bool = False
    priority: int = 0
    # Its successors in a chain; the chord it belongs to, its place in it, and the chord's body.
    chain: tuple[str, ...] = ()
    chord: tuple[str, int, str] | None = None
    # It is sent by others, at the end of these.
    after: tuple[str, ...] = ()


@dataclass
class Scenario:
    """A situation to explore.

    Attributes:
        env: what may happen around the ops, and how often.
        harmless: those in `env` that are not faults and do not count as such.
        faults: the most faults in a schedule.
    """

    name: str
    messages: tuple[Message, ...]
    workers: Mapping[str, tuple[int, tuple[str, ...]]]
    env: Mapping[str, int] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    faults: int = 3
    steps: int = 30
    fates: tuple[str, ...] = ALL_FATES
    send_fates: tuple[str, ...] = ("lost", "dropped", "slow")
    run_fates: tuple[str, ...] = ()
    two_servers: bool = False
    overdue: bool = False
    pausable: tuple[str, ...] = ()
    # Messages held per slot; Celery workers besides; lists of each queue.
    prefetch: int = 1
    celery: tuple[str, ...] = ()
    priorities: tuple[int, ...] = (0,)
    # The id of the workflow, if workflows are indexed, and what may be called when it ends:
    # "success", "failure" or "end", by the id of the message.
    flow: str = ""
    calls: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_id = {message.id: message for message in self.messages}
        self.plans = {message.id: message.plan for message in self.messages}
        self.queues = tuple(dict.fromkeys(message.queue for message in self.messages))
        free = self.harmless | {label for label in self.env if "!send" in label}
        self.is_fault = frozenset(label for label in self.env if label not in free)
        self._texts: dict[str, str] | None = None
        self.chords = Counter(each.chord[0] for each in self.messages if each.chord)

    def texts(self, site: Site) -> dict[str, str]:
        if self._texts is None:
            self._texts = {m.id: site.text(m, self._options(m)) for m in self.messages}
        return self._texts

    def signature(self, task_id: str, task: str, **options: Any) -> dict[str, Any]:
        return {
            "task": task, "args": [], "kwargs": {}, "immutable": False, "subtask_type": None,
            "options": {"task_id": task_id, "queue": "q", **options},
        }  # fmt: skip

    def options(self, message: Message) -> dict[str, Any]:
        """Return the options with which a message is sent."""
        return {**self._options(message), "task_id": message.id, "queue": message.queue}

    def _options(self, message: Message) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self.flow and message.id not in self.calls:
            options["root_id"] = self.flow
        if message.chain:
            steps = [self.signature(each, self.by_id[each].task) for each in message.chain]
            options["chain"] = steps[::-1]
        if message.chord:
            group, place, body = message.chord
            last = self.by_id[body]
            options |= {"group_id": group, "group_index": place}
            following = {}
            if last.chord:
                following = {
                    "group_id": last.chord[0], "group_index": last.chord[1],
                    "chord": self.signature(last.chord[2], self.by_id[last.chord[2]].task),
                }  # fmt: skip
            options["chord"] = self.signature(body, last.task, **following)
        return options


@dataclass(frozen=True)
class Periodic:
    """A periodic entry: its messages contain its name and its version."""

    name: str
    every: int = 2
    version: int = 1
    missed: str = "run_once"
    overlap: str = "allow"
    jitter_s: float = 0.0

    @property
    def skip_after_s(self) -> float:
        return float(self.missed[5:-1]) if self.missed.startswith("skip") else 0.0

    def fields(self, name: str) -> dict[str, Any]:
        return {
            "task": "late", "schedule": float(self.every), "args": [name, self.version],
            "missed": self.missed, "overlap": self.overlap, "jitter": self.jitter_s,
            "options": {"queue": "q"},
        }  # fmt: skip


@dataclass
class BeatScenario(Scenario):
    """Some beats on one server.

    Attributes:
        beats: the entries in the code of each.
        entries: all of these, by name.
        puts: what may be added at run time.
    """

    beats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    entries: Mapping[str, Periodic] = field(default_factory=dict)
    puts: Mapping[str, Periodic] = field(default_factory=dict)


_Q = ("q",)
_TWO: dict[str, tuple[int, tuple[str, ...]]] = {"A": (2, _Q), "B": (2, _Q)}
_ONE_EACH: dict[str, tuple[int, tuple[str, ...]]] = {"A": (1, _Q), "B": (1, _Q)}
_DEATHS = {"A!kill": 1, "A!kill:late": 1, "A!lease_end": 1, "B!lease_end": 1}
_HEADER = ("g", 0, "z"), ("g", 1, "z")
_STILL = {"A!freeze": 1, "A!lease_end": 2, "A!suspend": 1}


def _scenarios() -> list[Scenario]:
    m = Message
    return [
        Scenario("plain", (m("x"), m("y")), _TWO, _DEATHS | _STILL | {"A!restart": 1}),
        Scenario("one", (m("x"), m("y", later=True)), {"A": (1, _Q)}, {"S!send:y": 1}, steps=15),
        Scenario(
            "retry", (m("x", plan=("retry", "ok")), m("y", plan=("fail",))), _TWO, _DEATHS | _STILL
        ),
        Scenario("again", (m("x"),), _TWO, _STILL | {"A!kill": 1}, run_fates=("fail", "retry")),
        Scenario(
            "outcome", (m("x"),), {"A": (1, _Q), "B": (1, _Q)},
            {"A!lease_end": 1, "A!suspend": 1, "A!freeze": 1}, faults=2, fates=("slow", "late"),
            run_fates=("fail", "retry"),
        ),
        Scenario(
            "back", (m("x"),), {"A": (1, _Q), "B": (1, _Q)}, {"A!lease_end": 1},
            faults=2, steps=20, fates=("slow",),
        ),
        Scenario("started", (m("x", "started", ("retry", "ok")),), _TWO, _DEATHS | _STILL),
        Scenario(
            "early", (m("x", "early"), m("y", "early")), _TWO,
            _DEATHS | _STILL | {"A!cold": 1, "A!stop": 1},
        ),
        Scenario("early_retry", (m("x", "early", ("retry", "ok")),), _TWO, _STILL),
        Scenario(
            "eta", (m("x", eta_s=20.0), m("y", eta_s=90.0)), _TWO,
            _DEATHS | {"*!time:20": 1, "*!time:71": 1, "A!drain": 1, "A!stop": 1},
            harmless=frozenset({"*!time:20", "*!time:71"}),
        ),
        Scenario(
            "stop", (m("x"), m("y"), m("z")), _TWO,
            {"A!stop": 1, "A!kill": 1, "A!lease_end": 1}, harmless=frozenset({"A!stop"}),
        ),
        Scenario(
            "cold", (m("x"), m("y"), m("z")), _TWO,
            {"A!cold": 1, "A!kill": 1, "A!lease_end": 1}, harmless=frozenset({"A!cold"}),
        ),
        Scenario(
            "drain", (m("x"), m("y"), m("z", later=True)), _TWO,
            {"A!drain": 1, "A!undrain": 1, "B!drain": 1, "B!undrain": 1, "S!send:z": 1},
            harmless=frozenset({"A!drain", "A!undrain", "B!drain", "B!undrain"}),
        ),
        Scenario(
            "pause", (m("x"), m("y", queue="r"), m("z", later=True)),
            {"A": (2, ("q", "r"))},
            {
                "*!pause:q": 2, "*!resume:q": 2, "A!look": 1, "S!send:z": 1, "A!drain": 1,
                "A!undrain": 1,
            },
            harmless=frozenset({"*!pause:q", "*!resume:q", "A!look", "A!drain", "A!undrain"}),
            pausable=("q",), faults=2,
        ),
        Scenario(
            "cancel", (m("x", later=True), m("y", queue="r", later=True)),
            {"A": (4, ("q", "r"))},
            {"*!pause:q": 1, "S!send:x": 1, "S!send:y": 1, "A!look": 1},
            harmless=frozenset({"*!pause:q", "A!look"}), pausable=("q",), faults=2,
            fates=("late",), send_fates=(),
        ),
        Scenario(
            "revoke", (m("x"), m("y", eta_s=20.0)), _TWO,
            _DEATHS | {"*!revoke:x": 1, "*!revoke:y": 1, "*!time:20": 1},
            harmless=frozenset({"*!revoke:x", "*!revoke:y", "*!time:20"}),
        ),
        Scenario(
            "recovery", (m("x"), m("y", later=True)),
            {"A": (2, _Q), "B": (1, _Q), "C": (1, _Q)},
            {
                "A!kill": 1, "A!lease_end": 2, "B!lease_end": 1, "A!freeze": 1, "B!kill": 1,
                "S!send:y": 1,
            },
            faults=4,
        ),
        Scenario(
            "verdict", (m("x", "once"), m("y", "once")), _TWO,
            {"A!kill": 1, "A!lease_end": 2, "A!freeze": 1, "A!kill:late": 1},
        ),
        Scenario(
            "two_servers", (m("x", plan=("retry", "ok")), m("y", "once")), _TWO,
            _DEATHS | _STILL, two_servers=True,
        ),
        Scenario(
            "send", (m("x", later=True), m("y", later=True)), _TWO,
            {"S!send:x": 1, "S!send:y": 1, "A!kill": 1, "A!drain": 1, "A!lease_end": 1},
        ),
        Scenario(
            "flush", (m("x", plan=("retry", "ok")), m("y", eta_s=20.0)), {"A": (2, _Q)},
            {"*!flush": 1},
        ),
        Scenario(
            "recoverers", (m("x"), m("y"), m("z")),
            {"A": (3, _Q), "B": (1, _Q), "C": (1, _Q)},
            {"A!kill": 1, "A!kill:late": 1, "*!time:1.5": 3, "B!lease_end": 1, "B!kill": 1},
            harmless=frozenset({"*!time:1.5"}), faults=4, steps=40,
        ),
        Scenario(
            "guard", (m("x"), m("y")), {"A": (1, _Q), "B": (1, _Q)},
            {
                "A!freeze": 1, "A!guard": 1, "A!extend": 2, "A!kill": 1, "A!end": 1,
                "*!time:5": 1, "A!lease_end": 1,
            },
            harmless=frozenset({"A!guard", "A!extend", "A!end", "*!time:5"}), prefetch=2,
        ),
        Scenario(
            "blocked", (m("x"), m("y"), m("z", "early")), {"A": (1, _Q), "B": (1, _Q)},
            {"A!block": 2, "A!lease_end": 1, "A!kill": 1, "A!stop": 1},
            harmless=frozenset({"A!block", "A!stop"}), prefetch=3,
        ),
        Scenario(
            "suspects", (m("x", plan=("die",)), m("y"), m("z")), {"A": (3, _Q), "B": (1, _Q)},
            faults=2, fates=("lost", "dropped", "slow"),
        ),
        Scenario(
            "celery", (m("x", plan=("retry", "ok")), m("y"), m("z", later=True)),
            {"A": (1, _Q), "B": (1, _Q)},
            {
                "S!send:z": 1, "A!kill": 1, "A!lease_end": 1, "A!drain": 1, "A!stop": 1,
                "C!kill": 1, "C!restore": 2, "*!time:3700": 1, "A!freeze": 1,
            },
            harmless=frozenset({"C!restore", "*!time:3700", "A!drain", "A!stop"}),
            celery=("C",), overdue=True, steps=40,
            # A repeated send cannot see what a Celery worker has in hand.
            send_fates=("dropped",),
        ),
        Scenario(
            "parked", (m("x", eta_s=70.0), m("y", eta_s=75.0)), {"A": (1, _Q), "B": (1, _Q)},
            _DEATHS | {"B!kill": 1, "*!time:20": 1, "*!time:51": 1, "*!time:5": 1, "A!stop": 1},
            harmless=frozenset({"*!time:20", "*!time:51", "*!time:5", "A!stop"}),
            steps=40, faults=4,
        ),
        Scenario(
            "relay", (m("x", priority=3), m("y", priority=3, later=True), m("z", later=True)),
            {"A": (1, _Q), "B": (1, _Q)},
            {"S!send:y": 1, "S!send:z": 1, "A!kill": 1, "A!lease_end": 1, "B!stop": 1},
            harmless=frozenset({"B!stop"}), priorities=(0, 3),
        ),
        Scenario(
            "deep_retry", (m("x", plan=("retry", "ok")),), _ONE_EACH, {"A!lease_end": 1},
            harmless=frozenset({"A!lease_end"}), faults=1, fates=("lost", "late"),
        ),
        Scenario(
            "deep_early", (m("x", "early"),), _ONE_EACH, {"A!lease_end": 1},
            harmless=frozenset({"A!lease_end"}), faults=1, fates=("lost", "late"),
        ),
        Scenario(
            "deep_parked", (m("x", eta_s=70.0),), _ONE_EACH,
            {"A!lease_end": 1, "*!time:71": 1}, harmless=frozenset({"A!lease_end", "*!time:71"}),
            faults=1, fates=("lost", "late"),
        ),
        *_workflows(),
        *_flows(),
        *_beats(),
        Scenario(
            "rollback", (m("x"), m("y", plan=("retry", "ok"))), _TWO,
            {"*!snap": 1, "*!rollback": 1, "A!lease_end": 1}, harmless=frozenset({"*!snap"}),
        ),
    ]  # fmt: skip


def _workflows() -> list[Scenario]:
    def chord(task: str, **plans: tuple[str, ...]) -> tuple[Message, ...]:
        header = (
            Message(name, task, plans.get(name, ("ok",)), chord=_HEADER[place])
            for place, name in enumerate("xy")
        )
        return (*header, Message("z", after=("x", "y"), later=True))

    def chain(task: str, *plan: str) -> tuple[Message, ...]:
        return (
            Message("x", task, plan or ("ok",), chain=("y", "z")),
            Message("y", after=("x",), later=True),
            Message("z", after=("y",), later=True),
        )

    # A chord whose body is the last part of another one.
    nested = (
        Message("x", chord=("g", 0, "y")),
        Message("w", chord=("h", 0, "z")),
        Message("y", chord=("h", 1, "z"), after=("x",), later=True),
        Message("z", after=("w", "y"), later=True),
    )
    faults = _DEATHS | _STILL
    return [
        Scenario("chain", chain("late"), _TWO, faults, run_fates=("fail",), steps=40),
        Scenario("chain_retry", chain("late", "retry", "ok"), _TWO, faults, steps=40),
        Scenario("chain_early", chain("early"), _TWO, faults | {"A!cold": 1}, steps=40),
        Scenario("replace", chain("late", "replace", "ok"), _TWO, faults, steps=40),
        Scenario("chord", chord("late"), _ONE_EACH, faults, run_fates=("fail",), steps=40),
        Scenario("chord_alone", chord("late"), {"A": (2, _Q)}, faults, steps=40),
        Scenario(
            "chord_early", chord("early"), _TWO, faults | {"A!cold": 1, "A!stop": 1},
            run_fates=("fail",), steps=40,
        ),
        Scenario("chord_once", chord("once"), _TWO, faults, steps=40),
        Scenario("chord_revoked", chord("late"), _TWO, {**_DEATHS, "*!revoke:x": 1}, steps=40),
        Scenario(
            "chord_killer", chord("late", x=("die",)), {"A": (2, _Q), "B": (1, _Q)}, faults=2,
            fates=("lost", "dropped", "slow"), steps=40,
        ),
        Scenario("chord_nested", nested, _TWO, faults, run_fates=("fail",), steps=50),
        Scenario(
            "chord_apart", chord("late"), _ONE_EACH, faults, run_fates=("fail",), steps=40,
            two_servers=True,
        ),
    ]  # fmt: skip


def _flows() -> list[Scenario]:
    """Return the scenarios with the index of workflows."""
    m = Message

    def chord(task: str = "late", *plan: str, more: tuple[Message, ...] = ()) -> Any:
        return (
            m("x", task, plan or ("ok",), chord=_HEADER[0]), m("y", task, chord=_HEADER[1]),
            m("z", after=("x", "y"), later=True), *more,
        )  # fmt: skip

    def chain(task: str = "late", *plan: str) -> Any:
        return (
            m("x", task, plan or ("ok",), chain=("y", "z")), m("y", after=("x",), later=True),
            m("z", after=("y",), later=True),
        )  # fmt: skip

    def flow(
        name: str,
        messages: tuple[Message, ...],
        workers: Mapping[str, tuple[int, tuple[str, ...]]],
        env: Mapping[str, int],
        **options: Any,
    ) -> Scenario:
        root = "x" if messages[0].chain else "g"
        told = frozenset(label for label in env if label[0] == "*")
        return Scenario(
            name, messages, workers, env, told, **{"steps": 50, "flow": root, **options}
        )

    cancel, pause, retry = {"*!cancel": 1}, {"*!pause": 2, "*!resume": 2}, {"*!retry": 2}
    faults = {**_DEATHS, **_STILL}
    calls = {"k": "success", "f": "failure", "e": "end"}
    called = {f"*!call:{each}": 1 for each in calls}
    ends = tuple(m(each, later=True) for each in calls)
    return [
        flow("flow_cancel", chord(), _ONE_EACH, faults | cancel, run_fates=("fail",)),
        flow("flow_cancel_chain", chain(), _TWO, faults | cancel, run_fates=("fail",)),
        flow("flow_cancel_early", chain("early"), _TWO, faults | cancel | {"A!cold": 1}),
        flow("flow_pause", chord(), _TWO, faults | pause | {"A!stop": 1}),
        flow("flow_pause_chain", chain("late", "retry", "ok"), {"A": (1, _Q)}, faults | pause),
        flow("flow_pause_cancel", chord(), _ONE_EACH, faults | pause | cancel | retry),
        flow("flow_retry", chord("late", "fail", "ok"), _ONE_EACH, faults | retry),
        flow("flow_retry_chain", chain("late", "fail", "ok"), _TWO, faults | retry),
        flow("flow_retry_early", chord("early", "fail", "ok"), _TWO, faults | retry),
        flow("flow_cancel_retry", chord(), _ONE_EACH, _DEATHS | cancel | retry),
        flow(
            "flow_calls", chord("late", "fail", "ok", more=ends), _TWO, faults | retry | called,
            calls=calls,
        ),
        flow("flow_calls_ok", chain() + ends, _TWO, faults | pause | called, calls=calls),
        flow(
            "flow_add", chord(more=(m("a", later=True),)), _TWO,
            faults | pause | cancel | {"*!add": 1},
        ),
        flow(
            "flow_apart", chord("late", "fail", "ok"), _ONE_EACH, faults | pause | retry,
            two_servers=True,
        ),
        flow("deep_flow", chain(), {"A": (1, _Q)}, cancel, faults=1, fates=("lost", "late")),
    ]  # fmt: skip


def _beats() -> list[Scenario]:
    def beats(
        name: str,
        *entries: Periodic,
        env: Mapping[str, int],
        harmless: Iterable[str] = (),
        beats: str = "AB",
        puts: Mapping[str, Periodic] | None = None,
        apart: Mapping[str, tuple[str, ...]] | None = None,
        **options: Any,
    ) -> Scenario:
        """Return a scenario with beats that all have the same entries, unless `apart` says more."""
        names = tuple(entry.name for entry in entries)
        return BeatScenario(
            name, (), {}, env, frozenset(harmless),
            **{"steps": 45, "faults": 4, **options},
            beats=apart or dict.fromkeys(beats, names),
            entries={entry.name: entry for entry in entries},
            puts=puts or {},
        )  # fmt: skip

    p = Periodic
    deaths = {
        "A!kill": 1, "A!kill:late": 1, "B!kill": 1, "A!freeze": 1, "B!freeze": 1, "A!suspend": 1,
        "A!jump": 2, "B!jump": 1, "A!stop": 1, "A!restart": 1, "*!time:5": 1,
    }  # fmt: skip
    still = ("A!jump", "B!jump", "*!time:5", "A!stop", "A!restart")
    paused = {"*!pause:x": 2, "*!resume:x": 2}
    changed = {"*!put:x2": 1, "*!put:x3": 1, "*!remove:x": 2}
    done = {"*!done:x": 4}
    return [
        beats("beat", p("x", missed="run_all"), p("y", 3), env=deaths, harmless=still),
        beats("beat_one", p("x", missed="run_all"), beats="A", env=deaths, harmless=still),
        beats(
            "beat_three", p("x", missed="run_all", jitter_s=1.0), p("y", 3, missed="skip(1)"),
            beats="ABC", env=deaths | {"C!kill": 1, "C!freeze": 1}, harmless=still, steps=60,
        ),
        beats(
            "beat_pause", p("x", missed="run_all"), p("y"), env=deaths | paused,
            harmless=(*still, *paused),
        ),
        beats(
            "beat_change", p("x"), p("y", 3, missed="run_all"), env=deaths | paused | changed,
            harmless=(*still, *paused, *changed),
            puts={"x2": p("x", 3, 2), "x3": p("x", 4, 3)},
        ),
        beats(
            "beat_added", p("y", 3, missed="run_all"), env=deaths | changed,
            harmless=(*still, *changed),
            puts={"x2": p("x", 1, 2, "run_all"), "x3": p("x", 1, 3, "run_all")},
        ),
        beats(
            "beat_skip", p("x", overlap="skip"), env=deaths | done, harmless=(*still, *done),
        ),
        beats(
            "beat_queue_one", p("x", overlap="queue_one"), env=deaths | done,
            harmless=(*still, *done),
        ),
        beats(
            "beat_cancel", p("x", overlap="cancel"), p("y", missed="skip(1)"),
            env=deaths | done, harmless=(*still, *done),
        ),
        beats(
            "beat_refused", p("x", missed="run_all"), p("y", 3),
            env=deaths | {"*!refuse": 1}, harmless=still,
        ),
        # A deployment: the old and the new beats each have a leader.
        beats(
            "beat_deployed", p("x", missed="run_all"), p("y", 3), env=deaths, harmless=still,
            apart={"A": ("x",), "B": ("x", "y")},
        ),
        beats("beat_flush", p("x", missed="run_all"), p("y", 3), env=deaths | {"*!flush": 1},
              harmless=still),
        beats(
            "deep_beat", p("x", 1, missed="run_all"), env={"A!kill": 1},
            fates=("lost", "late"), faults=1,
        ),
    ]  # fmt: skip


SCENARIOS: dict[str, Scenario] = {each.name: each for each in _scenarios()}


def named(name: str) -> list[Scenario]:
    return list(SCENARIOS.values()) if name == "all" else [SCENARIOS[name]]
