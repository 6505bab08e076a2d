"""``greenq deploy``: files that run workers in production, ready to be used or changed."""

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
    """Give `parser` the command's options."""
    parser.add_argument("what", choices=tuple(_FILES), help="for which program")
    parser.add_argument("-A", "--app", help="the app of the workers (default: GREENQ_APP)")


def run(args: argparse.Namespace) -> int:
    """Write the file to stdout."""
    sys.stdout.write(file(args.what, args.app))
    return 0


def file(what: str, app: str | None = None) -> str:
    """Return the text of a file; with `app`, its workers are of that app.

    Raises:
        GreenqError: this installation has no such file.
    """
    package = Path(greenq.__file__).parent
    # Installed, or in the source tree.
    for folder in (package / "deploy", package.parent / "deploy"):
        path = folder / _FILES[what]
        if path.is_file():
            text = path.read_text("utf-8")
            break
    else:
        raise GreenqError(f"this installation of greenq has no {_FILES[what]}")
    if app is None:
        return text
    # A percent sign is supervisord's own.
    named = shlex.quote(app).replace("%", "%%")
    return re.sub(r"(?m)^command=greenq worker ", lambda found: f"{found[0]}-A {named} ", text)
