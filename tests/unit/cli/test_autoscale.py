"""`greenq autoscale`: the table and the plot of what workers reply."""

from __future__ import annotations

from typing import Any

import pytest

from greenq.cli.autoscale import node_lines, plot

STATS = {"autoscaler": {"max": 500, "min": 10, "current": 10, "qty": 3}}
LOG = [
    {"at": 1000.0, "backlog": 2990, "running": 10, "size": 500, "reason": "2990 waiting"},
    {"at": 1060.0, "backlog": 0, "running": 3, "size": 10, "reason": "at most 10 needed recently"},
]


def lines(stats: object, log: object = (), last: int = 15) -> str:
    return "\n".join(node_lines("a@h", stats, log, last=last, now_s=1120.0))


def test_limits_decisions_and_plot_are_shown() -> None:
    text = lines(STATS, LOG)

    assert "10 slots of 10 to 500, 3 in use" in text
    rows = [line.split() for line in text.splitlines() if "waiting" in line or "recently" in line]
    assert [row[1:4] for row in rows] == [["2,990", "10", "500"], ["0", "3", "10"]]
    assert "500 ┤████" in text


def test_only_the_last_decisions_are_listed() -> None:
    text = lines(STATS, LOG, last=1)

    assert "2990 waiting" not in text
    assert "at most 10 needed recently" in text


def test_processes_have_a_table_of_their_own() -> None:
    changes = [{"at": 1000.0, "workers": 1, "change": 1, "reason": "hubs busy for 97%"}]
    text = lines(
        {
            "Processes": {
                "group": "greenq",
                "process": "greenq-0",
                "max": 4,
                "min": 1,
                "leads": True,
                "changes": changes,
            }
        }
    )

    assert "process greenq-0 leads group greenq of 1 to 4 processes" in text
    assert "hubs busy for 97%" in text


def test_a_worker_without_autoscaler_says_so() -> None:
    assert "as in --autoscale 500,10" in lines({"pool": {}})


@pytest.mark.parametrize(
    "log",
    [None, "text", [1, "x", {}], [{"at": "x", "size": None}], [{"at": 1e300, "size": 1}]],
)
def test_replies_that_are_none_harm_nothing(log: Any) -> None:
    assert "10 slots" in lines(STATS, log)


def test_a_plot_shows_the_largest_value_of_each_column() -> None:
    drawn = list(plot([(0, 10), (50, 100), (51, 10), (100, 10)], columns=10, rows=2))

    assert drawn[0] == "100 ┤     █"
    assert len(drawn[1]) == len("  0 ┤") + 10


def test_a_plot_needs_some_time() -> None:
    assert list(plot([])) == []
    assert list(plot([(5, 1)])) == []
    assert list(plot([(5, 1), (5, 2)])) == []
