"""The nodes of a workflow: which one a message belongs to, and what is to follow it."""

from __future__ import annotations

from typing import Any

import pytest

from greenq import Greenq, chain, chord, group
from greenq.canvas.nodes import Following, WorkflowNode, of_call, of_message, workflow_of
from greenq.canvas.plan import plan
from greenq.protocol.message import TaskMessage

app = Greenq("nodes", set_as_current=False)


def s(name: str, **options: Any) -> Any:
    return app.signature(name, args=(1,)).set(task_id=name, **options)


def message(**fields: Any) -> TaskMessage:
    return TaskMessage(task="t", id="me", **fields)


def followers(whole: Any) -> dict[str, tuple[str | None, bool]]:
    """Return what each task that is made later follows, and whether a body waits for it."""
    following = Following()
    return {
        node.task_id: (node.after, node.is_part)
        for call in plan(whole).calls
        for node in following.call(call)
    }


def test_a_task_on_its_own_is_no_workflow() -> None:
    assert workflow_of(message()) is None
    assert workflow_of(message(root_id="me")) is None
    assert workflow_of(message(root_id="other")) == "other"
    assert workflow_of(message(chain=[s("next")])) == "me"
    assert workflow_of(message(callbacks=[s("link")])) == "me"


def test_members_that_a_client_sends_belong_to_their_outermost_group() -> None:
    inner = s("inner", group_id="outer", chord=s("outer-body", group_id="outer"))
    assert workflow_of(message(group="g")) == "g"
    assert workflow_of(message(group="g", chord=s("body", group_id="g"))) == "g"
    assert workflow_of(message(group="g", chord=inner)) == "outer"
    assert workflow_of(message(chain=[s("last", group_id="g"), s("next")])) == "g"
    assert workflow_of(message(group="g", chord=chain(s("a"), s("b", group_id="x")))) == "x"
    assert of_message(message(group="g", chord=inner)).within == ("outer", "g")
    assert of_message(message(group="g", parent_id="p")).within == ()


def test_bodies_that_lead_in_a_circle_end() -> None:
    body: dict[str, Any] = dict(s("body", group_id="g"))
    body["options"] = {**body["options"], "chord": body}
    assert workflow_of(message(group="g", chord=body)) == "g"


@pytest.mark.parametrize(
    "node",
    [
        WorkflowNode("a", "proj.add"),
        WorkflowNode("a", "proj.add", "p", "g", 3, True, "b", ("outer", "g")),
        WorkflowNode("a", 'x|"y"\n', None, "g\x00"),
    ],
)
def test_a_node_is_read_as_it_was_written(node: WorkflowNode) -> None:
    assert WorkflowNode.read("a", node.written()) == node
    assert WorkflowNode.read("a", "") == WorkflowNode("a", "")


def test_long_names_are_cut() -> None:
    assert len(WorkflowNode.read("a", WorkflowNode("a", "x" * 9999).written()).task) == 200


def test_what_follows_is_known_before_it_is_made() -> None:
    header = [s("b"), chain(s("c1"), s("c2")), chord([s("i"), s("j")], s("k"))]
    whole = chain(s("a"), chord(header, s("d")), s("e"))
    found = followers(whole)
    assert found["b"] == ("a", True)
    assert found["c1"] == ("a", False)
    assert found["c2"] == ("c1", True)
    assert found["i"] == found["j"] == ("a", True)
    assert found["k"][1] is True
    assert found["e"] == ("d", False)
    assert list(found).count("d") == 1


def test_body_of_a_header_that_is_sent_is_planned_once() -> None:
    header = group(s("a"), s("b")).set(task_id="g")
    following = Following()
    calls = plan(chord(header, s("body"))).calls
    nodes = [node for call in calls for node in following.call(call)]
    assert [(node.task_id, node.after) for node in nodes] == [("body", "g")]
    assert [of_call(call).within for call in calls] == [("g",), ("g",)]
