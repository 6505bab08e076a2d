"""Exploring schedules: at random, depth first, by replay, and shrinking them."""

from __future__ import annotations

import gc
import random
import re
from typing import Any, NamedTuple

from tests.model.beats import BeatWorld
from tests.model.check import check
from tests.model.flows import FlowWorld
from tests.model.kernel import Op
from tests.model.net import ModelServer
from tests.model.scenarios import BeatScenario, Scenario
from tests.model.world import Site, World

# Schedules between two garbage collections.
_TIDY_EVERY = 400


class Found(NamedTuple):
    """A schedule that breaks a promise."""

    scenario: str
    labels: list[str]
    problems: list[str]
    # Including the healing steps up to the violation.
    whole: list[str]

    @property
    def key(self) -> tuple[str, str]:
        """The kind of violation, regardless of the task or worker."""
        return self.scenario, _NAMES.sub("_", self.problems[0])


_NAMES = re.compile(r"\b([A-CZ]\d?|[xyz])\b|\(.*")


class Pace:
    """The speeds of a schedule's parts: some are slow, so that others overtake them."""

    __slots__ = ("_body", "_renew", "_slow")

    def __init__(self, world: World, rng: random.Random) -> None:
        names = [*world.workers, "S", "", ""]
        self._slow = names[int(rng.random() * len(names))]
        self._renew = (0.05, 0.2, 1.0)[int(rng.random() * 3)]
        self._body = (0.05, 0.3, 1.0)[int(rng.random() * 3)]

    def of(self, op: Op) -> float:
        """Return an op's relative weight."""
        if op.timeout:
            return 0.02
        weight = 1.0
        if op.kind in ("watch", "look"):
            weight = self._renew
        elif op.body is not None:
            weight = self._body
        return weight * 0.1 if op.actor.owner.name == self._slow else weight


class Explorer:
    """A server and the apps on it, for schedule after schedule."""

    def __init__(self, mutant: tuple[str, str, str] | None = None) -> None:
        self.server = ModelServer(mutant)
        self._sites: dict[Any, Site] = {}
        self.steps = 0
        self._worlds = 0

    def close(self) -> None:
        self.server.close()

    def world(self, scenario: Scenario) -> World:
        kind = scenario.two_servers, scenario.priorities, bool(scenario.flow)
        site = self._sites.get(kind)
        if site is None:
            site = Site(self.server, two_servers=kind[0], steps=kind[1], indexed=kind[2])
            self._sites[kind] = site
        self._worlds += 1
        if self._worlds % _TIDY_EVERY == 0:
            # `installed` disables the collector, which would scan the whole memory of answers.
            gc.collect()
            gc.freeze()
        if isinstance(scenario, BeatScenario):
            return BeatWorld(site, scenario)
        if scenario.flow:
            return FlowWorld(site, scenario)
        return World(site, scenario)

    # --- one schedule -----------------------------------------------------------------------------

    def replay(self, scenario: Scenario, labels: list[str]) -> Found:
        """Run the labels that are possible, then heal and check."""
        world = self.world(scenario)
        world.is_replay = True
        try:
            for label in labels:
                world.do(label)
                if world.problems:
                    break
            return self._end(world)
        finally:
            world.close()

    def random(self, scenario: Scenario, seed: str) -> Found:
        """Run a schedule chosen by `seed`."""
        rng = random.Random(seed)
        world = self.world(scenario)
        try:
            self._walk(world, rng)
            return self._end(world)
        finally:
            world.close()

    def _end(self, world: World) -> Found:
        labels = list(world.labels)
        check(world)
        self.steps += world.step
        whole = [label.removeprefix("+") for label in world.labels]
        return Found(world.scenario.name, labels, list(world.problems), whole)

    def _walk(self, world: World, rng: random.Random) -> None:
        scenario = world.scenario
        chance = rng.random
        most = rng.randrange(4, scenario.steps + 1)
        # A few schedules have many faults, most have few.
        fault_share = 0.05 + 0.3 * chance()
        env_share = 0.05 + 0.3 * chance()
        pace = Pace(world, rng)
        for _ in range(most):
            if world.late and chance() < 0.15:
                op = world.late[int(chance() * len(world.late))]
                world.do_late(op, "~" + world.label_of(op, world.late))
            elif chance() < env_share and self._env(world, rng):
                pass
            elif not self._op(world, rng, fault_share, pace):
                return
            if world.problems:
                return

    @staticmethod
    def _env(world: World, rng: random.Random) -> bool:
        labels = world.env_choices()
        return bool(labels) and world.do_env(labels[int(rng.random() * len(labels))])

    @staticmethod
    def _op(world: World, rng: random.Random, fault_share: float, pace: Pace) -> bool:
        ops = world.choices()
        weights = [pace.of(op) for op in ops]
        total = sum(weights)
        if not total:
            return False
        left = rng.random() * total
        op = ops[-1]
        for each, weight in zip(ops, weights, strict=True):
            left -= weight
            if left < 0:
                op = each
                break
        label = world.label_of(op, ops)
        fate = ""
        if op.body is not None:
            if op.fates and rng.random() < 0.3:
                fate = op.fates[int(rng.random() * len(op.fates))]
        elif world.faults_left > 0 and rng.random() < fault_share:
            fates = world.fates(op)
            if fates:
                fate = fates[int(rng.random() * len(fates))]
                world.faults_left -= 1
        world.do_op(op, fate, f"{label}:{fate}" if fate else label)
        return True

    # --- shrinking --------------------------------------------------------------------------------

    def shrink(self, scenario: Scenario, found: Found, most: int = 400) -> Found:
        """Return a minimal schedule that breaks a promise of the same kind."""
        key = found.key
        best, tries = found, 0
        size = max(1, len(best.labels) // 2)
        while size and tries < most:
            at, smaller = 0, False
            while at < len(best.labels) and tries < most:
                labels = best.labels[:at] + best.labels[at + size :]
                again = self.replay(scenario, labels)
                tries += 1
                less = len(again.labels) < len(best.labels)
                if less and again.problems and again.key == key:
                    best, smaller = again, True
                else:
                    at += size
            if not smaller or size > 1:
                size //= 2
        return best

    # --- depth first ------------------------------------------------------------------------------

    def depth_first(
        self, scenario: Scenario, *, depth: int, faults: int, most: int
    ) -> tuple[int, int, list[Found]]:
        """Try all schedules to a depth with at most `faults` faults; skip states already seen.

        Return the number of schedules tried, the number of states, and the violations.
        """
        # The fewest steps in which each state was reached.
        seen: dict[int, int] = {}
        stack: list[list[str]] = [[]]
        tried, found = 0, []
        # Each schedule begins like an earlier one.
        self.server.past.most_calls = depth * 4
        while stack and tried < most:
            prefix = stack.pop()
            world = self.world(scenario)
            world.faults_left = faults
            try:
                if self._extend(world, prefix, depth, seen, stack):
                    result = self._end(world)
                    if result.problems:
                        found.append(result)
            finally:
                world.close()
            tried += 1
        return tried, len(seen), found

    def _extend(
        self,
        world: World,
        prefix: list[str],
        depth: int,
        seen: dict[int, int],
        stack: list[list[str]],
    ) -> bool:
        """Continue after `prefix` and stack the alternatives; return False if all was seen
        before."""
        for label in prefix:
            self._do_counted(world, label)
        while not world.problems:
            state, steps = fingerprint(world), len(world.labels)
            if seen.get(state, depth + 1) <= steps:
                return False
            seen[state] = steps
            labels = self._all_labels(world) if steps < depth else []
            if not labels:
                break
            done = list(world.labels)
            stack.extend([*done, label] for label in reversed(labels[1:]))
            self._do_counted(world, labels[0])
        return True

    @staticmethod
    def _do_counted(world: World, label: str) -> None:
        if "!" not in label and label[0] != "~" and ":" in label and ".run." not in label:
            world.faults_left -= 1
        done = world.do(label)
        assert done, label

    @staticmethod
    def _all_labels(world: World) -> list[str]:
        labels = []
        ops = world.choices()
        for op in ops:
            label = world.label_of(op, ops)
            if op.timeout:
                continue
            labels.append(label)
            if op.body is not None or world.faults_left > 0:
                labels += [f"{label}:{fate}" for fate in world.fates(op)]
        labels += ["~" + world.label_of(op, world.late) for op in world.late]
        return labels + world.env_choices()


def fingerprint(world: World) -> int:
    """Hash everything that decides how a world continues; times are relative to now."""
    from tests.model.check import Dump  # noqa: PLC0415

    if isinstance(world, BeatWorld):
        return hash(repr(world.fingerprint()))
    dump = Dump(world)
    leases = [(member, ends > world.now) for member, ends in sorted(dump.leases.items())]
    ops = sorted((op.name, op.state, _plain(op)) for op in world.kernel.pending)
    state: Any = (
        sorted(dump.held), dump.queued, dump.inbox, dump.parked, dump.dead, leases,
        sorted(world.states.items()), ops,
        sorted((op.name, _plain(op)) for op in world.late),
        [op.name for op in world.blocked],
        [worker.local_state() for worker in world.workers.values()],
        sorted(world.env.items()), world.faults_left,
        [(key, len(runs), [run.excused for run in runs]) for key, runs in world.runs.items()],
        world.fingerprint() if isinstance(world, FlowWorld) else None,
    )  # fmt: skip
    return hash(repr(state))


def _plain(op: Op) -> str:
    """Return an op's contents beyond its name."""
    return "" if op.commands is None else repr([str(part)[:60] for part in op.commands[0][3:]])
