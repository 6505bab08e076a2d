"""Tables of a run, in Markdown: ``python -m benchmarks.report results.json [--goals]``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, ParamSpec

from benchmarks.figures import NotMeasured, Results
from benchmarks.goals import verdicts
from benchmarks.plan import FULL, PEERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.figures import Ratio
    from benchmarks.goals import Verdict
    from benchmarks.plan import Workload

P = ParamSpec("P")


class Column(NamedTuple):
    """One column of a workload's table: its heading, the figure, and digits after the point."""

    heading: str
    figure: str
    digits: int


COLUMNS = (
    Column("of the ideal", "ideal_share", 3),
    Column("commands", "commands", 2),
    Column("server reads", "reads", 3),
    Column("bytes in", "bytes_in", 0),
    Column("bytes out", "bytes_out", 0),
    Column("worker CPU, µs", "worker_cpu_us", 1),
    Column("client CPU, µs", "client_cpu_us", 1),
    Column("server CPU, µs", "server_cpu_us", 1),
    Column("peak, MB", "peak_mb", 0),
    Column("in flight, KB", "in_flight_kb", 1),
    Column("p50, ms", "p50_ms", 2),
    Column("p99, ms", "p99_ms", 2),
    Column("worst, ms", "worst_ms", 2),
    Column("heartbeats/s heard", "heartbeats_s", 1),
    Column("CPU, % of a core", "cpu_percent", 2),
    Column("without them", "idle_cpu_percent", 2),
    Column("commands/s sent", "client_commands_s", 2),
    Column("commands/s carried out", "commands_s", 2),
    Column("CPU, s a minute", "cpu_s_a_minute", 3),
    Column("MB", "rss_mb", 1),
    Column("connections", "connections", 0),
    Column("commands, 1 worker", "commands_of_one", 1),
    Column("commands, 50 workers", "commands_of_many", 1),
    Column("ratio", "wakes", 2),
    Column("last late, s", "late_s", 2),
    Column("p99 late, s", "late_p99_s", 3),
    Column("a waiting task, KB", "waiting_kb", 2),
    Column("growth, MB", "growth_mb", 1),
    Column("workers, cores", "worker_cores", 2),
    Column("server, cores", "server_cores", 2),
    Column("others, cores", "others_cores", 2),
)

# If the two ways to compute a ratio differ by more than this fraction, both ratios are shown.
_DIFFERENT = 0.1


def text(results: Results) -> str:
    """Return the whole report in Markdown."""
    parts = [_conditions(results), *_tables(results)]
    known = [verdict for verdict in verdicts(results) if verdict.measured is not None]
    if known:
        parts.insert(1, goals_table(known))
    if results.failures:
        parts.append("\n".join(("Failed:", "", *(f"- {each}" for each in results.failures))))
    return "\n\n".join(parts) + "\n"


def goals_table(judged: Sequence[Verdict]) -> str:
    """Return the table of goals: what, goal, measured, met or not."""
    rows = []
    for verdict in judged:
        goal = verdict.goal
        bound = "at most" if goal.at_most else "at least"
        measured = "not measured"
        if verdict.measured is not None:
            measured = goal.form.format(verdict.measured)
            if verdict.by_round is not None and _differ(verdict.measured, verdict.by_round):
                measured += f" (by round {goal.form.format(verdict.by_round)})"
        met = "–" if verdict.measured is None else "yes" if verdict.met else "**no**"
        rows.append(
            (goal.workload, goal.what, f"{bound} {goal.form.format(goal.target)}", measured, met)
        )
    return _markdown(("workload", "figure", "goal", "measured", "met"), rows)


def main() -> None:
    """Print the tables of a run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="file written by python -m benchmarks --json")
    parser.add_argument("--goals", action="store_true", help="only the table of all goals")
    options = parser.parse_args()
    results = Results.read(options.results)
    print(goals_table(verdicts(results)) if options.goals else text(results))


def _conditions(results: Results) -> str:
    record = results.record
    machine, versions = record["machine"], record["versions"]
    packages = {
        f"{name} {version}"
        for each in versions.values()
        if isinstance(each, dict)
        for name, version in each.items()
    }
    scale = record["options"].get("scale", 1)
    scaled = f" Scaled to {scale:g} of the tasks: the goals do not apply." if scale != 1 else ""
    return "\n".join(
        (
            f"{machine['cores']} cores, {machine['processor']}, {machine['system']}, "
            f"Python {machine['python']}, server {versions['server']}.",
            f"At {record['at']}; load {record['load_before'][0]:.2f} before, "
            f"{record.get('load_after', [0.0])[0]:.2f} after.",
            f"{', '.join(sorted(packages))}.",
            f"Medians (least … most of the rounds); counts, bytes and CPU are per task.{scaled}",
        )
    )


def _tables(results: Results) -> Iterator[str]:
    for workload in FULL:
        contenders = results.contenders(workload.key)
        if contenders:
            yield f"### {workload.title}\n\n{_table(results, workload, contenders)}"


def _table(results: Results, workload: Workload, contenders: Sequence[str]) -> str:
    key, without = workload.key, workload.without
    names = results.names(key)
    columns = [column for column in COLUMNS if column.figure in names]
    rated = "rate" in names
    headings = ["", *(("greenq is", "a second") if rated else ()), *(c.heading for c in columns)]
    if without:
        headings.insert(3, "of its own without")
    rows = []
    for contender in contenders:
        row = [PEERS[contender].title]
        if rated:
            row.append(_cell(_times, results, key, contender))
            row.append(_cell(_spread, results, key, contender, "rate", 0))
        if without:
            row.append(_cell(_own_times, results, key, without, contender))
        row += [_cell(_spread, results, key, contender, c.figure, c.digits) for c in columns]
        rows.append(row)
    return _markdown(headings, rows)


def _cell(write: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> str:
    try:
        return write(*args, **kwargs)
    except NotMeasured:
        return "–"


def _times(results: Results, workload: str, contender: str) -> str:
    if contender == "greenq":
        return ""
    return _ratio(results.ratio(workload, "greenq", contender))


def _own_times(results: Results, workload: str, without: str, contender: str) -> str:
    return _ratio(results.own_ratio(workload, without, contender))


def _ratio(ratio: Ratio) -> str:
    said = f"{_digits(ratio.value)} ×"
    if _differ(ratio.value, ratio.by_round):
        said += f" (by round {_digits(ratio.by_round)} ×)"
    return said


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _spread(results: Results, workload: str, contender: str, figure: str, digits: int) -> str:
    spread = results.spread(workload, contender, figure)
    if spread.rounds == 1:
        return f"{spread.median:,.{digits}f}"
    return f"{spread.median:,.{digits}f} ({spread.least:,.{digits}f} … {spread.most:,.{digits}f})"


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > _DIFFERENT * abs(one)


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(headings, *rows, strict=True)]
    lines = [headings, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


if __name__ == "__main__":
    main()
