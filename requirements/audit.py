"""Ask a public database for known vulnerabilities of the versions in the requirements files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

# pip-audit's words when it could not ask, or was not told.
UNREACHABLE = (
    "could not be audited",
    "ConnectionError",
    "ServiceError",
    "Connection refused",
    "Max retries",
    "timed out",
)


def main() -> int:
    """Audit what users and developers get; return 1 for a finding, 2 if nobody could be asked."""
    files = [part for name in ("demo", "dev") for part in ("-r", str(HERE / f"{name}.txt"))]
    # Each version is written down with its hashes, so nothing need be resolved or installed.
    options = ["--strict", "--disable-pip", "--require-hashes", *files]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and any(said in done.stderr for said in UNREACHABLE):
        last = done.stderr.strip().splitlines()[-1]
        sys.stderr.write(
            "make audit: nothing was audited: the database of vulnerabilities cannot be reached "
            f"from here; run it where there is a network ({last[:200]})\n"
        )
        return 2
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
