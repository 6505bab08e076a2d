"""Write the requirements files: exact versions with the hashes of all their wheels.

``make lock`` runs it with uv. The files contain no address, so they work with a private index, too:
uv uses the one that pip is configured for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PYPROJECT = HERE.parent / "pyproject.toml"

# The oldest supported Python; markers select what newer ones need.
PYTHON = "3.11.5"

# Each file's name and contents. setuptools builds greenq itself.
FILES = {
    "demo": [str(PYPROJECT), "-", "--extra", "demo"],
    "dev": [str(PYPROJECT), "-", "--extra", "dev"],
    "otel": [str(HERE / "otel.in"), "--constraint", str(HERE / "dev.txt")],
    "tools": [str(HERE / "tools.in")],
}
BUILDS = "setuptools>=77\n"

HEADER = "# Written by `make lock`: exact versions, and the hashes of all that may be installed.\n"

# pip's settings and the corresponding variables of uv.
SETTINGS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "cert": ("SSL_CERT_FILE", " "),
}


def of_pip() -> dict[str, str]:
    """Return the variables that make uv use pip's indexes."""
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
    """Write one file; keep the versions in it unless `options` has ``--upgrade``."""
    goal = HERE / f"{name}.txt"
    subprocess.run(
        [
            *(Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", *FILES[name]),
            *("--universal", "--python-version", PYTHON, "--generate-hashes"),
            # Trust all indexes alike, as pip does.
            *("--index-strategy", "unsafe-best-match", "--no-emit-index-url"),
            *("--no-emit-find-links", "--no-header", "--no-annotate", "--output-file", goal),
            *options,
        ],
        input=BUILDS, text=True, env=os.environ | of_pip(), check=True,
    )  # fmt: skip
    goal.write_text(HEADER + goal.read_text().removeprefix(HEADER))


def main() -> None:
    """Write all files."""
    # The larger file uses the versions of the smaller one.
    for name in FILES:
        lock(name, sys.argv[1:])
        print(f"requirements/{name}.txt")  # noqa: T201


if __name__ == "__main__":
    main()
