"""Each contender's packages in a separate environment, created when first needed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peer import Peer

ROOT = Path(__file__).resolve().parent.parent
_MADE = ROOT / ".bench"
_PEERS = ROOT / "benchmarks" / "peers"


class Unavailable(Exception):
    """A contender cannot run on this machine; the text says what it needs."""


def prepare(peer: Peer) -> None:
    """Create a contender's environment unless it exists and is up to date.

    Raises:
        Unavailable: a program is missing, or the packages could not be installed.
    """
    if peer.home == "own":
        return
    folder, needs = _MADE / peer.key, _needs(peer)
    stamp = folder / ".installed"
    wanted = hashlib.sha256(needs.read_bytes() + platform.python_version().encode()).hexdigest()
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return
    print(f"Installing {peer.title} into .bench/{peer.key} …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    if peer.home == "node":
        if not (shutil.which("node") and shutil.which("npm")):
            raise Unavailable(f"{peer.title} needs node and npm")
        folder.mkdir(parents=True)
        shutil.copy(needs, folder)
        _run(peer, ("npm", "install", "--silent", "--no-package-lock", "--no-audit"), folder)
    else:
        _run(peer, (sys.executable, "-m", "venv", str(folder)), ROOT)
        pip = (str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
        _run(peer, (*pip, "install", "--quiet", "--quiet", "-r", str(needs)), ROOT)
    stamp.write_text(wanted, "utf-8")


def command(peer: Peer, words: Sequence[str]) -> list[str]:
    """Return a contender's command, with the path of its program in the contender's environment."""
    program, *rest = words
    if peer.home == "node":
        return [program, *rest]
    if peer.home == "own":
        return [sys.executable if program == "python" else program, *rest]
    return [str(_MADE / peer.key / "bin" / program), *rest]


def variables(peer: Peer) -> dict[str, str]:
    """Return the environment variables of a contender's processes."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    found = os.environ | {"PYTHONPATH": path}
    if peer.home == "node":
        found["NODE_PATH"] = str(_MADE / peer.key / "node_modules")
    return found


def versions(peer: Peer) -> dict[str, str]:
    """Return the versions of a contender's relevant packages."""
    if peer.home == "own":
        return {name: importlib.metadata.version(name) for name in peer.packages}
    if peer.home == "node":
        modules = _MADE / peer.key / "node_modules"
        return {
            name: json.loads((modules / name / "package.json").read_text("utf-8"))["version"]
            for name in peer.packages
        }
    lines = subprocess.run(
        command(peer, ("python", "-m", "pip", "freeze")), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    installed = dict(line.split("==") for line in lines if "==" in line)
    return {name: installed[name] for name in peer.packages}


def _needs(peer: Peer) -> Path:
    """Return the file that names a contender's packages."""
    name = "package.json" if peer.home == "node" else "requirements.txt"
    return _PEERS / peer.key / name


def _run(peer: Peer, words: Sequence[str], folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout)[-2000:]
        raise Unavailable(f"{peer.title} could not be installed: {' '.join(words)}: {said}")
