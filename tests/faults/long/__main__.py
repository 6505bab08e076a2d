"""The long fault tests: ``python -m tests.faults.long``; prints a table, writes a JSON file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults.long.lab import Lab, LabServer, Row
from tests.faults.long.scenarios import SCENARIOS, Scenario

_LAYOUT = "{:<18}{:>8}{:>10}{:>7}{:>6}{:>7}{:>10}{:>7}  {}"
_TITLES = ("scenario", "sent", "executed", "twice", "lost", "stuck", "recovery", "took", "verdict")


def main() -> int:
    """Run the chosen scenarios; return 1 if a promise was broken."""
    args = _arguments()
    chosen = _chosen(args.only, quick=args.quick)
    rows = []
    _write(_LAYOUT.format(*_TITLES))
    with ExitStack() as stack:
        # One ahead: on a newly started server, workers wait for a grace period before recovery.
        servers = (stack.enter_context(_server(scenario.fsync)) for scenario in chosen)
        following = next(servers)
        for scenario in chosen:
            server, following = following, next(servers, following)
            row = run(scenario, server, quick=args.quick, logs=args.logs)
            rows.append(row)
            _show(row)
            _save(rows, args.json)
    return int(any(row.problems for row in rows))


def run(scenario: Scenario, server: LabServer, *, quick: bool, logs: Path | None = None) -> Row:
    """Run one scenario on a server that it may damage; its own error is a broken promise, too."""
    with ExitStack() as stack:
        stack.callback(server.stop)
        lab = Lab(server, server.folder, _progress(scenario.name), quick=quick)
        if logs is not None:
            stack.callback(_copy_logs, server.folder, logs / scenario.name)
        stack.callback(lab.close)
        try:
            scenario.run(lab)
        except Exception:
            lab.problems.append(f"the scenario itself failed:\n{traceback.format_exc()}")
        return lab.row(scenario.name)


@contextmanager
def _server(fsync: str) -> Iterator[LabServer]:
    with tempfile.TemporaryDirectory(prefix="greenq-faults-") as folder:
        server = LabServer(Path(folder), fsync)
        try:
            yield server.start()
        finally:
            server.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.long", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="a name or a prefix")
    parser.add_argument("--quick", action="store_true", help="run in less than three minutes")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the workers' logs there")
    parser.add_argument("--json", type=Path, default=Path("build/faults.json"), metavar="FILE")
    return parser.parse_args()


def _chosen(names: Sequence[str], *, quick: bool) -> list[Scenario]:
    if not names:
        return [scenario for scenario in SCENARIOS if scenario.in_quick or not quick]
    chosen = [each for each in SCENARIOS if each.name.startswith(tuple(names))]
    if not chosen:
        known = ", ".join(scenario.name for scenario in SCENARIOS)
        raise SystemExit(f"no scenario begins with {' or '.join(names)}; there are {known}")
    return chosen


def _copy_logs(folder: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob("*.log"), folder / "ledger"):
        shutil.copy(path, target)


def _show(row: Row) -> None:
    recovery = "-" if row.recovery_s is None else f"{row.recovery_s:.1f} s"
    counts = (row.sent, row.executed, row.twice, row.lost, row.stuck)
    verdict = "BROKEN" if row.problems else "held"
    _write(_LAYOUT.format(row.scenario, *counts, recovery, f"{row.took_s:.0f} s", verdict))
    for problem in row.problems:
        _write(f"    {problem}")
    if row.figures:
        _write("    " + ", ".join(f"{name}: {value}" for name, value in row.figures.items()))


def _save(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


def _progress(name: str) -> Callable[[str], None]:
    """Return a function that shows the progress of a scenario in place."""
    wipe = "\r\033[K" if sys.stderr.isatty() else ""
    end = "" if wipe else "\n"

    def say(text: str) -> None:
        sys.stderr.write(f"{wipe}{name}: {text}{end}")
        sys.stderr.flush()

    return say


def _write(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
