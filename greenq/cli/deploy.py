"""``greenq deploy``: configurations that run workers in production, and a rolling restart."""

from __future__ import annotations

import argparse
import configparser
import importlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import greenq
from greenq.cli import argument_types, show
from greenq.cli.common import add_app_options, opened
from greenq.errors import GreenqError, SupervisorError
from greenq.supervision.rolling import RollingRestart
from greenq.supervision.supervisor import Supervisor, supervisor_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greenq.app import Greenq

_FILES: Final = {
    "supervisord": "supervisord.conf",
    "systemd": "greenq@.service",
    "docker": "Dockerfile",
    "kubernetes": "kubernetes.yaml",
}

# The options that the files contain by default; `file` replaces them.
_APP: Final = "proj"
_AUTOSCALE: Final = "500,10"
_PROCESSES: Final = "4,1"

# Text that needs no quotes in any of the formats.
_PLAIN: Final = re.compile(r"[\w./:@+-]+")

# The timeout for replies from a draining worker.
_REPLY_S: Final = 2.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's subcommands to `parser`."""
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for what, text in (
        (
            "supervisord",
            "write a supervisord.conf: a group of workers and a listener that watches them",
        ),
        ("systemd", "write a systemd template unit, greenq@.service, for any number of workers"),
        ("docker", "write a Dockerfile"),
        ("kubernetes", "write a Deployment, a disruption budget and a scaler for Kubernetes"),
    ):
        _add_writer(kinds, what, text)
    _add_restart(kinds)


def _add_writer(kinds: Any, what: str, text: str) -> None:
    parser = kinds.add_parser(what, help=text, description=f"{text.capitalize()}, to stdout.")
    add = parser.add_argument
    add("-A", "--app", default=os.environ.get("GREENQ_APP"), type=plain,
        help="the app of the workers (default: GREENQ_APP)")  # fmt: skip
    add("--autoscale", type=argument_types.limits, metavar="MAX,MIN",
        help=f"limits on concurrent tasks in each process (default {_AUTOSCALE})")  # fmt: skip
    if what == "supervisord":
        add("--processes", type=argument_types.limits, metavar="MAX,MIN",
            help=f"limits on the number of processes (default {_PROCESSES})")  # fmt: skip
    if what == "systemd":
        add("--directory", type=plain, default=str(Path.cwd()), metavar="DIR",
            help="the directory that contains the app (default: this one)")  # fmt: skip
        add(
            "--user", type=plain, default="greenq", help="run workers as this user (default greenq)"
        )
        add("--binary", type=plain, default=_binary(), metavar="PATH",
            help="the path of the greenq command (default: this one's)")  # fmt: skip
    if what == "docker":
        add("--python", type=plain, default="3.12", metavar="VERSION",
            help="the Python version (default 3.12)")  # fmt: skip
    if what == "kubernetes":
        add("--image", type=plain, default="proj:latest", help="the image (default proj:latest)")
        add("--replicas", type=argument_types.count, default=2, metavar="N",
            help="the number of pods (default 2)")  # fmt: skip


def _add_restart(kinds: Any) -> None:
    text = "restart the workers of a supervisord group, one after another"
    parser = kinds.add_parser("restart", help=text, description=f"{text.capitalize()}.")
    add = parser.add_argument
    add_app_options(parser)
    add("-c", "--configuration", metavar="FILE", type=Path,
        help="supervisord's configuration file (default: ./supervisord.conf)")  # fmt: skip
    add("--url", metavar="URL", help="supervisord's address, instead of a configuration file; for "
        "example, unix:///path/supervisor.sock")  # fmt: skip
    add("--group", default="greenq", metavar="NAME", help="the group (default greenq)")
    add("--drain", type=argument_types.seconds, default=600.0, metavar="S",
        help="wait S seconds for a worker's running tasks (default 600); after that, they have "
        "its worker_shutdown_grace to finish")  # fmt: skip
    add("--ready", type=argument_types.seconds, default=60.0, metavar="S",
        help="a restarted worker must reply within S seconds (default 60)")  # fmt: skip


def plain(text: str) -> str:
    """Read a name or path that needs no quotes in any of the files."""
    if not _PLAIN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} has characters that a configuration file would have to quote: use letters, "
            "digits and . / : @ + - _"
        )
    return text


def _binary() -> str:
    """Return the path of this greenq command."""
    return shutil.which("greenq") or str(Path(sys.executable).with_name("greenq"))


def run(args: argparse.Namespace) -> int:
    """Print the file, or restart the workers."""
    if args.what == "restart":
        return _restart(args)
    sys.stdout.write(file(args.what, vars(args)))
    if args.app is None and args.what != "supervisord":
        show.complain(f"greenq deploy: no app is named (-A, GREENQ_APP), so the file names {_APP}")
    return 0


# --- files ----------------------------------------------------------------------------------------


def file(what: str, options: Mapping[str, Any]) -> str:
    """Return the text of a file with the given options in place of the defaults.

    Raises:
        GreenqError: this installation has no such file.
    """
    text = _template(what)
    app, autoscale = options.get("app"), options.get("autoscale")
    if autoscale:
        text = text.replace(f"{_AUTOSCALE}", "{},{}".format(*autoscale))
    if what == "supervisord":
        return _supervisord(text, app, options.get("processes"))
    replaced = {
        "/srv/proj/.venv/bin/greenq": options.get("binary"),
        "/srv/proj": options.get("directory"),
        "User=greenq": options.get("user") and f"User={options['user']}",
        "python:3.12": options.get("python") and f"python:{options['python']}",
        "image: proj:latest": options.get("image") and f"image: {options['image']}",
        "replicas: 2": options.get("replicas") and f"replicas: {options['replicas']}",
        f"-A {_APP}": app and f"-A {app}",
        f'"-A", "{_APP}"': app and f'"-A", "{app}"',
    }
    for old, new in replaced.items():
        if new:
            text = text.replace(old, new)
    return text


def _supervisord(text: str, app: str | None, processes: tuple[int, int] | None) -> str:
    if processes is not None:
        most, least = processes
        text = text.replace(f"--processes {_PROCESSES}", f"--processes {most},{least}")
        text = text.replace("numprocs=3\n", f"numprocs={most - least}\n")
        text = text.replace("numprocs=1\n", f"numprocs={least}\n", 1)
        if most == least:
            # A program needs at least one process.
            text = re.sub(r"(?ms)^\[program:greenq-more\].*?^(?=; ---)", "", text)
            text = text.replace("programs=greenq,greenq-more", "programs=greenq")
    if app is None:
        return text
    commands = r"(?m)^(;?command=greenq (?:worker|beat|supervisor-listener)) "
    return re.sub(commands, lambda found: f"{found[1]} -A {app} ", text)


def _template(what: str) -> str:
    package = Path(greenq.__file__).parent
    # An installed package contains the files; in a checkout, they are next to the package.
    for folder in (package / "deploy", package.parent / "deploy"):
        path = folder / _FILES[what]
        if path.is_file():
            return path.read_text("utf-8")
    raise GreenqError(f"this installation of greenq has no {_FILES[what]}")


# --- the rolling restart --------------------------------------------------------------------------


class _Cluster:
    """The workers of an app, for a rolling restart."""

    def __init__(self, app: Greenq) -> None:
        self._app = app
        # The module is imported only here, since the parser must not load it.
        self._members = importlib.import_module("greenq.transport.members")

    def here(self) -> Mapping[int, str]:
        found: Mapping[int, str] = self._members.nodes_here(
            self._app.transport.client, self._app.transport.keys
        )
        return found

    def ask(self, node: str, method: str, arguments: Mapping[str, Any]) -> Any:
        mailbox = self._app.control.mailbox
        return mailbox.ask(method, arguments, destination=[node], timeout_s=_REPLY_S).get(node)


def _restart(args: argparse.Namespace) -> int:
    supervisor = _supervisor(args.url, args.configuration)
    with opened(args) as app:
        restart = RollingRestart(
            supervisor,
            args.group,
            _Cluster(app),
            drain_s=args.drain,
            ready_s=args.ready,
            say=_say,
        )
        count = restart.run()
    show.write("1 worker was restarted" if count == 1 else f"{count} workers were restarted")
    return 0


def _say(text: str) -> None:
    show.write(show.printable(text))
    sys.stdout.flush()


def _supervisor(url: str | None, configuration: Path | None) -> Supervisor:
    """Return the supervisord that the command line names.

    Raises:
        SupervisorError: the command line names no supervisord, or the configuration has no address.
    """
    url = url or (None if configuration else os.environ.get("SUPERVISOR_SERVER_URL"))
    if url:
        return supervisor_at(url)
    path = configuration or Path("supervisord.conf")
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",), strict=False)
    try:
        parser.read_string(path.read_text("utf-8"))
        section = dict(parser["supervisorctl"])
        url = section["serverurl"]
    except (OSError, configparser.Error, KeyError, UnicodeDecodeError) as exc:
        raise SupervisorError(
            f"no address of supervisord in {path} ({exc}): give the address with --url, or name "
            "supervisord's configuration with -c; it needs a [supervisorctl] section with serverurl"
        ) from None
    url = url.replace("%(here)s", str(path.resolve().parent))
    url = re.sub(r"%\(ENV_(\w+)\)s", lambda name: os.environ.get(name[1], ""), url)
    return Supervisor(url, section.get("username", ""), section.get("password", ""))
