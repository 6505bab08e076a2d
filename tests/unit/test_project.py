"""Promises about the project as a whole: what an import costs, and what the tree holds."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK_FILES = {"poetry.lock", "uv.lock", "Pipfile.lock", "pdm.lock", "pylock.toml"}
SKIPPED_FOLDERS = {".git", ".venv", "_build", "build", "dist", "results", "__pycache__"}
# An index is named by an option or by its usual path; both would tie the project to one host.
INDEX = re.compile(rb"--(?:extra-)?index-url[ =]|--find-links[ =]|://[\w.:-]+/(?:[\w.-]+/)*simple/")


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    return set(run.stdout.split())


def project_files() -> list[Path]:
    """Return the files that are, or would be, in the repository."""
    git = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if git.returncode == 0:
        listed = [ROOT / name for name in git.stdout.decode().split("\0") if name]
    else:  # an unpacked archive: no repository, but the same promise
        listed = [
            path
            for path in ROOT.rglob("*")
            if not SKIPPED_FOLDERS & set(path.relative_to(ROOT).parts)
            and not any(part.endswith("_cache") for part in path.parts)
        ]
    return [path for path in listed if path.is_file()]


def test_import_greenq_loads_neither_redis_nor_gevent() -> None:
    loaded = modules_after("import greenq")
    assert "greenq" in loaded
    assert not loaded & {"redis", "gevent", "msgpack", "yaml", "ssl", "asyncio"}


def test_app_for_sending_loads_no_gevent() -> None:
    loaded = modules_after("from greenq import Greenq; Greenq('x')")
    assert "greenq" in loaded
    assert not loaded & {"gevent", "greenlet", "celery", "kombu"}


def test_no_file_names_a_package_index() -> None:
    files = [path for path in project_files() if path != Path(__file__)]
    assert ROOT / "pyproject.toml" in files
    assert [str(path) for path in files if INDEX.search(path.read_bytes())] == []


@pytest.mark.parametrize(
    "text", [b"--index-url https://h", b"--extra-index-url=x", b"https://h.org/a/simple/gevent/"]
)
def test_index_is_recognised_when_named(text: bytes) -> None:
    assert INDEX.search(text)


def test_there_is_no_lock_file() -> None:
    assert [path.name for path in project_files() if path.name in LOCK_FILES] == []


def test_every_package_and_the_examples_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "greenq").rglob("*.py")}
    wanted = {".".join(folder.parts) for folder in folders} | {"greenq.deploy", "greenq.examples"}
    assert set(project["tool"]["setuptools"]["packages"]) == wanted


@pytest.mark.parametrize(("name", "least"), [("dev", 80), ("demo", 8), ("tools", 20)])
def test_requirements_are_exact_versions_with_hashes_and_nothing_else(
    name: str, least: int
) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]
    named = r"[A-Za-z0-9._-]+(\[[\w,]+\])?==[\w.+!]+( ; [^\\\n]+)?"
    pin = named + r"( \\\n    --hash=sha256:[0-9a-f]{64})+\n?"
    assert [entry for entry in entries if not re.fullmatch(pin, entry)] == []
    assert len(entries) >= least


def test_everything_is_installed_by_hash() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = re.findall(r"^.*\binstall (?:.*\\\n)?.*$", makefile, re.MULTILINE)
    assert len([line for line in installs if "--require-hashes" in line]) >= 2
    # All but greenq itself, which brings nothing along.
    others = [
        line for line in installs
        if "pip" in line.lower() and "--require-hashes" not in line and "--no-deps" not in line
    ]  # fmt: skip
    assert [line for line in others if "apt install" not in line] == []


@pytest.mark.parametrize(
    "section", ["dependencies", "embedded", "deploy", "metrics", "otel", "yaml"]
)
def test_what_users_install_has_an_upper_bound(section: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project.get(section) or project["optional-dependencies"][section]
    assert [each for each in needed if "<" not in each] == []


def test_settings_page_is_what_its_generator_writes() -> None:
    run = subprocess.run(
        [sys.executable, "docs/make_settings.py", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
