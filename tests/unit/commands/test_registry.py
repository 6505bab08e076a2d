"""The table of commands: complete whichever module of the package is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

ONE_OF_EACH = ("ping", "revoke", "pause", "greenlets")


@pytest.mark.parametrize(
    "first",
    [
        "greenq.commands.registry", "greenq.commands.inspect", "greenq.commands.control",
        "greenq.commands.queues", "greenq.commands.diagnostics", "greenq.commands.arguments",
    ],
)  # fmt: skip
def test_all_commands_are_registered_whichever_module_comes_first(first: str) -> None:
    code = (
        f"import {first}; from greenq.commands.registry import panel; "
        f"print([name for name in {ONE_OF_EACH!r} if name not in panel._commands])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_command_of_an_app_replaces_one_of_greenq() -> None:
    code = (
        "from greenq import inspect_command\n"
        "@inspect_command(name='ping')\n"
        "def mine(worker):\n"
        "    return 'mine'\n"
        "import greenq.worker\n"
        "from greenq.commands.registry import panel\n"
        "print(panel.run('ping', None, {}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "mine"
