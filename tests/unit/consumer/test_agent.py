"""Agent: a class of the user's, found by its name."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from greenq.consumer.agent import Agent
from greenq.errors import ConfigError
from tests.unit.node import Node


class Recorder:
    """An agent that keeps what is done with it."""

    def __init__(self, worker: object) -> None:
        self.worker = worker
        self.done: list[str] = []

    def start(self) -> None:
        self.done.append("start")

    def stop(self) -> None:
        self.done.append("stop")


@pytest.fixture(autouse=True)
def proj(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("proj_of_agents")
    module.Recorder = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "proj_of_agents", module)
    return module


@pytest.mark.parametrize("path", ["proj_of_agents:Recorder", "proj_of_agents.Recorder"])
def test_the_class_is_found_made_with_the_worker_started_and_stopped(path: str) -> None:
    worker = object()
    agent = Agent(path, worker)
    assert agent.agent.worker is worker
    assert agent.agent.done == []

    agent.start()
    agent.stop()

    assert agent.agent.done == ["start", "stop"]


@pytest.mark.parametrize(
    "path",
    ["nowhere:Agent", "proj_of_agents:Missing", "Recorder", ":Recorder", "", "proj_of_agents:"],
)
def test_a_name_of_no_class_is_an_error_of_the_setting(path: str) -> None:
    with pytest.raises(ConfigError, match="worker_agent"):
        Agent(path, object())


def test_what_the_agent_raises_ends_the_start(proj: ModuleType) -> None:
    class Broken(Recorder):
        def start(self) -> None:
            raise RuntimeError("not today")

    proj.Broken = Broken  # type: ignore[attr-defined]
    agent = Agent("proj_of_agents:Broken", object())

    with pytest.raises(RuntimeError, match="not today"):
        agent.start()


def test_a_worker_has_an_agent_only_when_the_setting_names_one() -> None:
    with_agent = Node(settings={"worker_agent": "proj_of_agents:Recorder"}).worker
    without = Node().worker

    names = [step.name for step in with_agent.consumer.blueprint.steps]
    assert names[-1] == "Agent"
    assert "Agent" not in [step.name for step in without.consumer.blueprint.steps]
