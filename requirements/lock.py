"""Write the requirements files: exact versions with the hashes of all their wheels.

``make lock`` runs it with uv. The files hold no address, so an index of one's own serves as well:
uv is told of the one that pip is configured for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PYPROJECT = HERE.parent / "pyproject.toml"

# The oldest Python that all of it runs on; markers tell apart what newer ones need.
PYTHON = "3.11.5"

# Name of the file, what it is made of. setuptools builds greenq itself.
FILES = {
    "demo": [str(PYPROJECT), "-", "--extra", "demo"],
    "dev": [str(PYPROJECT), "-", "--extra", "dev"],
    "tools": [str(HERE / "tools.in")],
}
BUILDS = "setuptools>=77\n"

HEADER = "# Written by `make lock`: exact versions, and the hashes of all that may be installed.\n"

# pip's settings and uv's variables for the same.
SETTINGS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "cert": ("SSL_CERT_FILE", " "),
}


def of_pip() -> dict[str, str]:
    """Return the variables that tell uv where pip looks."""
    found = {}
    for setting, (variable, separator) in SETTINGS.items():
        told = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", f"global.{setting}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if told.returncode == 0:
            found[variable] = separator.join(told.stdout.split())
    return found


def lock(name: str, options: list[str]) -> None:
    """Write one file; versions that are in it stay unless `options` say ``--upgrade``."""
    goal = HERE / f"{name}.txt"
    subprocess.run(
        [
            *(Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", *FILES[name]),
            *("--universal", "--python-version", PYTHON, "--generate-hashes"),
            # All of pip's places are trusted alike, as pip does.
            *("--index-strategy", "unsafe-best-match", "--no-emit-index-url"),
            *("--no-emit-find-links", "--no-header", "--no-annotate", "--output-file", goal),
            *options,
        ],
        input=BUILDS, text=True, env=os.environ | of_pip(), check=True,
    )  # fmt: skip
    goal.write_text(HEADER + goal.read_text().removeprefix(HEADER))


def main() -> None:
    """Write all files."""
    # The smaller one's versions are the larger one's, too.
    for name in FILES:
        lock(name, sys.argv[1:])
        print(f"requirements/{name}.txt")  # noqa: T201


if __name__ == "__main__":
    main()
