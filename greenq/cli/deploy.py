"""``greenq deploy``: configuration files that run workers in production."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import greenq
from greenq.errors import GreenqError

if TYPE_CHECKING:
    import argparse

_FILES: Final = {"supervisord": "supervisord.conf"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("what", choices=tuple(_FILES), help="the program that runs the workers")
    parser.add_argument("-A", "--app", help="the app of the workers (default: GREENQ_APP)")


def run(args: argparse.Namespace) -> int:
    """Print the file."""
    sys.stdout.write(file(args.what, args.app))
    return 0


def file(what: str, app: str | None = None) -> str:
    """Return the text of a file; with `app`, its workers run that app.

    Raises:
        GreenqError: this installation has no such file.
    """
    package = Path(greenq.__file__).parent
    # The installed location, then the source tree.
    for folder in (package / "deploy", package.parent / "deploy"):
        path = folder / _FILES[what]
        if path.is_file():
            text = path.read_text("utf-8")
            break
    else:
        raise GreenqError(f"this installation of greenq has no {_FILES[what]}")
    if app is None:
        return text
    # supervisord expands percent signs.
    named = shlex.quote(app).replace("%", "%%")
    return re.sub(r"(?m)^command=greenq worker ", lambda found: f"{found[0]}-A {named} ", text)
