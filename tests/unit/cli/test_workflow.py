"""`greenq workflow`: what it makes of what the index holds."""

from __future__ import annotations

import pytest

from greenq.canvas.nodes import WorkflowNode
from greenq.cli.workflow import dot, fields, row, text
from greenq.transport.workflows import WorkflowRecord
from greenq.workflow.tree import Tree, WorkflowTask

RECORD = WorkflowRecord(
    1000.0, "proj.load", None, "", {"s": 3, "r": 1, "p": 1, "w": 0, "+": 0}, 0, ""
)
EVIL = "x\x1b[31m\ny"


def task(name: str, state: str = "s", times: str = "", **given: object) -> WorkflowTask:
    node = WorkflowNode(name, f"proj.{name}", **given)  # type: ignore[arg-type]
    return WorkflowTask.read(name, f"{state}{times}|{node.written()}")


def tree() -> Tree:
    part = {"group": "g", "is_part": True, "within": ("g",)}
    return Tree(
        [
            *(task(f"m{number}", times="1.000 3.000 w@h", **part) for number in range(3)),
            task("body", "r", "3.000  w@h", after="g", group="g"),
            task("end", "p", after="body"),
        ]
    )


def test_a_tree_is_drawn() -> None:
    assert list(text("w", RECORD, tree(), 20, 1004.0)) == [
        "workflow w: STARTED, 60% of 5 tasks have ended, 4s, 2s left",
        "1 PLANNED, 1 STARTED, 3 SUCCESS",
        "",
        "- chord g: 3 of 3 have ended",
        "    - proj.m0  m0  SUCCESS  2.000 s  w@h",
        "    - proj.m1  m1  SUCCESS  2.000 s  w@h",
        "    - proj.m2  m2  SUCCESS  2.000 s  w@h",
        "> proj.body  body  STARTED  1,001.000 s  w@h",
        "> proj.end  end  PLANNED",
    ]


def test_members_beyond_the_limit_are_counted_and_what_has_failed_is_shown_first() -> None:
    part = {"group": "g", "within": ("g",)}
    members = [task(f"m{number}", **part) for number in range(50)]
    lines = list(text("w", RECORD, Tree([*members, task("bad", "f", **part)]), 3, 1004.0))
    assert "    - proj.bad  bad  FAILURE" in lines
    assert lines[-1] == "    … 48 more; --limit shows more"


def test_a_workflow_that_is_over_shows_its_critical_path() -> None:
    over = RECORD._replace(over=1010.0, left_out=7, error="WRONGTYPE\x1b")
    lines = list(text("w", over, tree(), 20, 9999.0))
    assert lines[0] == "workflow w: SUCCESS, 60% of 5 tasks have ended, 10s"
    assert lines[2] == "7 notes did not fit into the index"
    assert lines[3] == "a call could not be sent when the workflow ended: WRONGTYPE\\x1b"
    assert lines[-1] == "critical path: proj.m0 > proj.body"


def test_a_row_and_json() -> None:
    assert row("w", RECORD, 1060.0) == ("1m", "w", "STARTED", "60%", "5", "0", "proj.load")
    assert fields("w", RECORD)["counts"] == {"PLANNED": 1, "STARTED": 1, "SUCCESS": 3}


def test_a_graph() -> None:
    lines = list(dot(tree()))
    assert '  "m1" -> "g";' in lines
    assert '  "g" -> "body";' in lines
    assert '  "body" -> "end";' in lines
    assert '  "g" [shape=point, xlabel="group"];' in lines


@pytest.mark.parametrize("places", [{}, {"group": EVIL, "within": (EVIL,)}])
def test_texts_of_others_are_cleaned(places: dict[str, object]) -> None:
    found = Tree(
        [WorkflowTask.read(EVIL, f"s1.0 2.0 {EVIL}|{WorkflowNode(EVIL, EVIL, **places).written()}")]
    )  # type: ignore[arg-type]
    record = RECORD._replace(task=EVIL, error=EVIL)
    lines = [*text(EVIL, record, found, 20, 1.0), *dot(found), *row(EVIL, record, 1.0)]
    assert not any("\x1b" in line or "\n" in line for line in lines)
