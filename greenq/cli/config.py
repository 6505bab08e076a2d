"""``greenq config``: each setting with its value, the value's source, and its meaning."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import textwrap
from typing import TYPE_CHECKING, Any, Final

from greenq.cli import show
from greenq.cli.common import add_app_options, is_named, opened
from greenq.config.settings import SECTIONS, Section
from greenq.config.validators import shown
from greenq.errors import UnknownSetting
from greenq.utils.suggest import suggestion

if TYPE_CHECKING:
    import argparse

    from greenq.app import Greenq

_WIDTH: Final = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    add_app_options(parser)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="show only settings that match a name, part of a name, or a pattern such as "
        "'worker_*log*'",
    )
    parser.add_argument("--changed", action="store_true", help="show only settings that are set")


def run(args: argparse.Namespace) -> int:
    """Print the app's settings; if no app is named, print the defaults and the environment's.

    Raises:
        UnknownSetting: a name or pattern matches no setting.
    """
    if is_named(args):
        with opened(args) as app:
            rows = describe(app)
    else:
        plain = importlib.import_module("greenq.app").Greenq("greenq", set_as_current=False)
        rows = describe(plain)
    chosen = {
        name: row
        for name, row in rows.items()
        if name in _matching(args.names, rows) and not (args.changed and row["source"] == "default")
    }
    if args.json:
        show.write_json(chosen)
    else:
        _print(chosen)
    return 0


def describe(app: Greenq) -> dict[str, dict[str, Any]]:
    """Return the value (without secrets), source, default, unit and meaning of each setting."""
    found = {}
    for section in SECTIONS.values():
        for each in dataclasses.fields(section):
            name, default = each.name, each.default
            if default is dataclasses.MISSING and each.default_factory is not dataclasses.MISSING:
                default = each.default_factory()
            found[name] = {
                "value": _plain(name, app.conf[name]),
                "source": app.conf.source_of(name),
                "default": _plain(name, default),
                "unit": each.metadata["unit"],
                "meaning": each.metadata["doc"],
            }
    return found


def _plain(name: str, value: object) -> object:
    """Return a value without secrets; return a section as a mapping."""
    if isinstance(value, Section):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return {name: _plain(name, item) for name, item in fields.items()}
    return shown(name, value)


def _matching(patterns: list[str], names: dict[str, Any]) -> set[str]:
    if not patterns:
        return set(names)
    found: set[str] = set()
    for pattern in patterns:
        text = pattern.lower()
        glob = text if any(sign in text for sign in "*?[") else f"*{text}*"
        some = {text} & set(names) or set(fnmatch.filter(names, glob))
        if not some:
            reason = "no setting has this name or matches it" + suggestion(text, names, cutoff=0.6)
            raise UnknownSetting(pattern, reason)
        found |= some
    return found


def _print(rows: dict[str, dict[str, Any]]) -> None:
    width = show.width() or _WIDTH
    for name, row in rows.items():
        unit = f" {row['unit']}" if row["unit"] and row["value"] is not None else ""
        show.write(f"{show.bold(name)} = {row['value']!r}{unit}  ({row['source']})")
        for line in textwrap.wrap(row["meaning"], width - 4):
            show.write(f"    {line}")
