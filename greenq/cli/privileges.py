"""The user that a worker runs as: switching to another user, and a warning about root."""

from __future__ import annotations

import grp
import logging
import os
import pwd
from pathlib import Path
from typing import Final

from greenq.errors import ConfigError, Problem

_log = logging.getLogger(__name__)

# Files that Docker and Podman create, and variables that Kubernetes and systemd-nspawn set.
_CONTAINER_FILES: Final = ("/.dockerenv", "/run/.containerenv")
_CONTAINER_VARIABLES: Final = ("KUBERNETES_SERVICE_HOST", "container")


def drop_rights(user: str | None, group: str | None) -> None:
    """Become `user` with its groups; if `group` is given, it replaces the user's own group.

    Args:
        user: a name or a number; None to stay the same user.
        group: a name or a number; None for the user's own.

    Raises:
        ConfigError: there is no such user or group, or this process cannot switch to it.
    """
    if user is None and group is None:
        return
    entry = None if user is None else _find_user(user)
    uid = os.geteuid() if entry is None else entry.pw_uid
    if group is not None:
        gid = _find_group(group)
    else:
        gid = os.getegid() if entry is None else entry.pw_gid
    if (uid, gid) == (os.geteuid(), os.getegid()) and os.geteuid() != 0:
        # The process already has these rights, for example after a restart in place.
        return
    name, value = ("gid", group) if user is None else ("uid", user)
    if os.geteuid() != 0:
        raise ConfigError([Problem(name, value, "only root can become another user or group")])
    try:
        if entry is None:
            os.setgroups([gid])
        else:
            os.initgroups(entry.pw_name, gid)
        os.setgid(gid)
        os.setuid(uid)
    except OSError as exc:
        raise ConfigError([Problem(name, value, f"cannot switch to it: {exc.strerror}")]) from exc


def _find_user(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise ConfigError([Problem("uid", user, "there is no such user")]) from None


def _find_group(group: str) -> int:
    try:
        return (grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)).gr_gid
    except (KeyError, OverflowError):
        raise ConfigError([Problem("gid", group, "there is no such group")]) from None


def warn_of_root() -> None:
    """Log a warning if this worker runs as root outside a container."""
    if os.geteuid() != 0 or os.environ.get("C_FORCE_ROOT") or _is_in_container():
        return
    _log.warning(
        "this worker runs as root, and so does the code of its tasks: name a user with --uid, "
        "or set C_FORCE_ROOT=1 if this is intended"
    )


def _is_in_container() -> bool:
    return (
        os.getpid() == 1
        or any(os.environ.get(name) for name in _CONTAINER_VARIABLES)
        or any(Path(file).exists() for file in _CONTAINER_FILES)
    )
