"""Look up the versions in the requirements files in a public database of vulnerabilities."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

# pip-audit's messages when the database did not answer.
UNREACHABLE = (
    "could not be audited",
    "ConnectionError",
    "ServiceError",
    "Connection refused",
    "Max retries",
    "timed out",
)


def main() -> int:
    """Audit the users' and developers' packages; return 1 for a finding, 2 if unreachable."""
    files = [part for name in ("demo", "dev") for part in ("-r", str(HERE / f"{name}.txt"))]
    # Each version is pinned with its hashes, so nothing needs to be resolved or installed.
    options = ["--strict", "--disable-pip", "--require-hashes", *files]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and any(said in done.stderr for said in UNREACHABLE):
        last = done.stderr.strip().splitlines()[-1]
        sys.stderr.write(
            "make audit: nothing was audited: the vulnerability database cannot be reached; "
            f"run it with network access ({last[:200]})\n"
        )
        return 2
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
