"""Another user of the machine: root can make one; for others a changed user id stands for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user; other tests stand for it"
)


@contextmanager
def as_nobody(act: Callable[[], None]) -> Iterator[None]:
    """Have another user carry out `act`, and keep its process until the block ends."""
    ready, tell = os.pipe()
    stay, end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(end)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
            os.write(tell, b"!")
            os.read(stay, 1)
            code = 0
        except BaseException as exc:
            os.write(2, f"as user {NOBODY}: {exc!r}\n".encode())
        finally:
            os._exit(code)
    os.close(tell)
    os.close(stay)
    try:
        assert os.read(ready, 1) == b"!", "the other user could not do it"
        yield
    finally:
        os.close(end)
        os.close(ready)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if sys.exc_info()[0] is None:
        assert code == 0
