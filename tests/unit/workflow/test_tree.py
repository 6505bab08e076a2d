"""The tree of a workflow: lines of steps, the critical path, the time that is left."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.canvas.nodes import WorkflowNode
from greenq.workflow.tree import Tree, WorkflowGroup, WorkflowStep, WorkflowTask


def task(name: str, state: str = "s", times: str = "", **fields: Any) -> WorkflowTask:
    return WorkflowTask.read(name, f"{state}{times}|{WorkflowNode(name, 't', **fields).written()}")


def shape(lines: list[list[WorkflowStep]]) -> Any:
    return [
        [
            (
                step.what.id
                if isinstance(step.what, WorkflowTask)
                else (step.what.id, shape(step.what.members))
            )
            for step in line
        ]
        for line in lines
    ]


CHORD = [
    task("a", times="1.000 2.000 w@h"),
    task("m", times="2.000 3.000 w@h", after="a", group="g", place=0, is_part=True, within=("g",)),
    task("n", times="2.000 5.000 w@h", after="a", group="g", place=1, is_part=True, within=("g",)),
    task("body", "r", "5.000  w@h", after="g", group="g"),
    task("end", "p", after="body"),
]


def test_a_task_is_read() -> None:
    found = CHORD[3]
    assert (found.state, found.began, found.ended, found.worker) == ("STARTED", 5.0, None, "w@h")
    assert found.is_open
    assert found.runtime_s(7.0) == 2.0
    assert CHORD[4].runtime_s(7.0) is None
    assert WorkflowTask.read("x", "s|").name == ""
    assert WorkflowTask.read("x", "").state == "UNKNOWN"


def test_steps_that_follow_one_another_stand_in_one_line() -> None:
    tree = Tree(CHORD)
    assert shape(tree.lines) == [["a", ("g", [["m"], ["n"]]), "body", "end"]]
    assert tree.groups["g"].is_chord


def test_what_else_a_task_has_begun_stands_beside_its_line() -> None:
    link, child = task("link", parent="a"), task("child", parent="end")
    tree = Tree([*CHORD, link, child])
    ((first, *_rest),) = tree.lines
    assert shape(first.others) == [["link"]]
    assert shape(tree.lines)[0][-2:] == ["end", "child"]


def test_a_body_that_was_not_known_before_follows_its_header() -> None:
    part: dict[str, Any] = {"group": "g", "is_part": True, "within": ("g",)}
    tree = Tree([task("m", **part), task("n", **part), task("body", parent="n", group="g")])
    assert shape(tree.lines) == [[("g", [["m"], ["n"]]), "body"]]


def test_groups_in_one_another() -> None:
    inner = {"group": "in", "is_part": True, "within": ("out", "in")}
    tree = Tree(
        [
            task("i", **inner), task("j", **inner),
            task("k", after="in", group="out", is_part=True),
            task("x", group="out", is_part=True, place=1, within=("out",)),
            task("body", after="out"),
        ]
    )  # fmt: skip
    assert shape(tree.lines) == [[("out", [[("in", [["i"], ["j"]]), "k"], ["x"]]), "body"]]


def test_the_critical_path_leads_through_what_was_waited_for() -> None:
    assert [each.id for each in Tree(CHORD).critical_path()] == ["a", "n", "body"]
    assert Tree([]).critical_path() == []


def test_time_left() -> None:
    assert Tree([task("a", "w")]).left_s(0.0) is None
    # Tasks took 1, 1 and 3 s: the mean is 5/3. The body has run for 1 s of it, the end for none.
    assert Tree(CHORD).left_s(6.0) == pytest.approx(2 / 3 + 5 / 3)
    # One slot was busy so far; what waits needs it one after another.
    waiting = [task(f"w{number}", "w") for number in range(4)]
    assert Tree([task("a", times="0.000 1.000 w"), *waiting]).left_s(1.0) == pytest.approx(4.0)


NAMES = st.one_of(st.none(), st.sampled_from("abcde"))


@given(
    st.lists(
        st.tuples(NAMES, NAMES, NAMES, st.booleans(), st.lists(st.sampled_from("gha"), max_size=2)),
        max_size=5,
    )
)
def test_whatever_the_index_says_every_task_is_shown_once(found: list[Any]) -> None:
    """Others can write there: circles, groups that are tasks, tasks that follow themselves."""
    tasks = [
        task(name, parent=parent, after=after, group=group, is_part=part, within=tuple(within))
        for name, (parent, after, group, part, within) in zip("abcde", found, strict=False)
    ]
    tree = Tree(tasks)

    def ids(lines: list[list[WorkflowStep]]) -> list[str]:
        return [
            each
            for line in lines
            for step in line
            for each in (
                *(
                    [step.what.id]
                    if isinstance(step.what, WorkflowTask)
                    else ids(step.what.members)
                ),
                *ids(step.others),
            )
        ]

    assert sorted(ids(tree.lines)) == sorted(each.id for each in tasks)
    assert all(isinstance(each, WorkflowGroup) for each in tree.groups.values())
    tree.critical_path()
    tree.left_s(10.0)
