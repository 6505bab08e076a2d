"""Finds the app that ``-A`` names, and imports its task modules."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import greenq
from greenq.app import Greenq
from greenq.errors import AppNotFound, GreenqError
from greenq.utils.suggest import nearest

# Frames from files in these directories are not the user's code.
_NOT_THE_USERS = ("<frozen importlib", str(Path(greenq.__file__).parent), importlib.__file__)

# The names that an app may have in a module. In a package, a submodule with one of these names may
# contain the app.
_ATTRIBUTES = ("app", "greenq", "celery")
_SUBMODULES = ("greenq", "celery")


def find_app(path: str | None) -> Greenq:
    """Import the app that ``-A`` names: ``module``, ``module:attribute`` or ``package``.

    In a module the app is named ``app``, ``greenq`` or ``celery``, or is the only app there; in a
    package it may also be in the submodule ``greenq`` or ``celery``. The working directory is first
    on the import path.

    Raises:
        AppNotFound: no app was found; the message says where greenq looked and what to do.
    """
    if not path:
        raise AppNotFound("no app named: name it, as in `greenq worker -A proj`")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    name, _, attribute = path.partition(":")
    module = _import(name)
    if attribute:
        return _attribute(module, attribute)
    found = _app_in(module)
    if found is None and hasattr(module, "__path__"):
        for submodule in _SUBMODULES:
            if found is None and find_spec(f"{name}.{submodule}") is not None:
                found = _app_in(_import(f"{name}.{submodule}"))
    if found is None:
        raise AppNotFound(_none_found(module))
    return found


def _none_found(module: ModuleType) -> str:
    name = module.__name__
    apps = _apps_in(module)
    if apps:
        named = " or ".join(f"-A {name}:{each}" for each in apps)
        return f"module {name!r} has several Greenq apps: name one, as in {named}"
    message = f"module {name!r} has no Greenq app named app, greenq or celery"
    for attribute, value in vars(module).items():
        if _is_celerys(value):
            return (
                f"{message}; its {attribute!r} is a Celery app: make it a Greenq app "
                f"with `from greenq import Greenq` and `{attribute} = Greenq(...)`"
            )
    return f"{message}; name it, as in `-A {name}:myapp`"


def _is_celerys(value: object) -> bool:
    return any(
        cls.__name__ == "Celery" and cls.__module__.startswith("celery.")
        for cls in type(value).__mro__
    )


def import_tasks(app: Greenq) -> None:
    """Import the task modules that an app names.

    Raises:
        GreenqError: a module cannot be imported; the message contains only the frames of user code.
    """
    try:
        app.import_task_modules()
    except GreenqError:
        raise
    except Exception as exc:
        raise AppNotFound(f"a task module cannot be imported:\n{_last_lines(exc)}") from exc


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        missing = exc.name or name
        if name.endswith(".py") and name.startswith(missing):
            raise AppNotFound(
                f"-A takes the name of a module, not of a file: -A {name.removesuffix('.py')}"
            ) from exc
        if name == missing or name.startswith(f"{missing}."):
            raise AppNotFound(
                f"no module named {missing!r} in {os.getcwd()} or on the import path; start greenq "
                "in the directory that contains it, or set PYTHONPATH"
            ) from exc
        raise AppNotFound(
            f"module {name!r} needs {missing!r}, which is not installed:\n{_last_lines(exc)}"
        ) from exc
    except Exception as exc:
        raise AppNotFound(f"module {name!r} cannot be imported:\n{_last_lines(exc)}") from exc


def _attribute(module: ModuleType, attribute: str) -> Greenq:
    value = getattr(module, attribute, None)
    if not isinstance(value, Greenq):
        what = (
            "has no such name" if value is None else f"is {type(value).__name__}, not a Greenq app"
        )
        apps = _apps_in(module)
        if _is_celerys(value):
            what = "is a Celery app, not a Greenq app: change it with `from greenq import Greenq`"
        elif apps:
            near = nearest(attribute, apps)
            likely = apps if near is None else [near]
            meant = " or ".join(f"{module.__name__}:{each}" for each in likely)
            what += f"; did you mean {meant}?"
        raise AppNotFound(f"{module.__name__}:{attribute}: {what}")
    return value


def _app_in(module: ModuleType) -> Greenq | None:
    for attribute in _ATTRIBUTES:
        value = getattr(module, attribute, None)
        if isinstance(value, Greenq):
            return value
    apps = {id(value): value for value in vars(module).values() if isinstance(value, Greenq)}
    return next(iter(apps.values())) if len(apps) == 1 else None


def _apps_in(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, Greenq)]


def _last_lines(exc: BaseException) -> str:
    """Return the frames of user code at the end of a traceback, and the error."""
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    return "".join(
        (*traceback.format_list(own[-4:]), *traceback.format_exception_only(exc))
    ).rstrip()
