"""On the import path of a worker that must appear, also to itself, to be on another host.

Workers identify their host by the kernel's boot id, so reading that is patched.
"""

from __future__ import annotations

import builtins
import io
import os
import socket
from typing import Any

_BOOT = "/proc/sys/kernel/random/boot_id"

_open = io.open


def _open_elsewhere(file: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(file, str | os.PathLike) and os.fspath(file) == _BOOT:
        mode = args[0] if args else kwargs.get("mode", "r")
        text = "e15e0000-0000-4000-8000-000000000000\n"
        return io.BytesIO(text.encode()) if "b" in mode else io.StringIO(text)
    return _open(file, *args, **kwargs)


io.open = builtins.open = _open_elsewhere
socket.gethostname = lambda: "elsewhere"
