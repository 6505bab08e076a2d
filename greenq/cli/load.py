"""Finding the app that ``-A`` names."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import greenq
from greenq.app import Greenq
from greenq.errors import AppNotFound

# Files whose frames say nothing about the user's module.
_NOT_THE_USERS = ("<frozen importlib", str(Path(greenq.__file__).parent), importlib.__file__)

# Where an app may stand in a module, and which submodules of a package may hold it.
_ATTRIBUTES = ("app", "greenq", "celery")
_SUBMODULES = ("greenq", "celery")


def find_app(path: str | None) -> Greenq:
    """Import the app that ``-A`` names: ``module``, ``module:attribute`` or ``package``.

    Of a module its ``app``, ``greenq`` or ``celery`` counts, else the only app in it; of a package
    also its submodule ``greenq`` or ``celery``. The current folder is looked at first.

    Raises:
        AppNotFound: with what was tried and what to do.
    """
    if not path:
        raise AppNotFound("no app named: say where it is, as in `greenq worker -A proj`")
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
        raise AppNotFound(_none_in(module))
    return found


def _apps_in(module: ModuleType) -> list[str]:
    """Return the names of all apps in a module."""
    return sorted(name for name, value in vars(module).items() if isinstance(value, Greenq))


def _none_in(module: ModuleType) -> str:
    """Say why no app was found in a module, and which name to give."""
    name, apps = module.__name__, _apps_in(module)
    if apps:
        choices = " or ".join(f"`-A {name}:{each}`" for each in apps)
        return f"module {name!r} has {len(apps)} Greenq apps; say which one: {choices}"
    return (
        f"module {name!r} has no Greenq app named app, greenq or celery; name it, as in "
        f"`-A {name}:myapp`"
    )


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        missing = exc.name or name
        if name.endswith(".py") and missing == name:
            raise AppNotFound(
                f"{name!r} is a file; -A takes the name of a module: leave out .py"
            ) from exc
        if name == missing or name.startswith(f"{missing}."):
            raise AppNotFound(
                f"no module named {missing!r} in {os.getcwd()} or on the import path; start greenq "
                "in the folder that holds it, or set PYTHONPATH"
            ) from exc
        raise AppNotFound(
            f"module {name!r} needs {missing!r}, which is not installed:\n{_last_lines(exc)}"
        ) from exc
    except Exception as exc:
        raise AppNotFound(f"module {name!r} cannot be imported:\n{_last_lines(exc)}") from exc


def _attribute(module: ModuleType, attribute: str) -> Greenq:
    value = getattr(module, attribute, None)
    if not isinstance(value, Greenq):
        what = "has no such name" if value is None else f"is {type(value).__name__}, no Greenq app"
        raise AppNotFound(f"{module.__name__}:{attribute}: {what}{_hint(module, attribute)}")
    return value


def _hint(module: ModuleType, attribute: str) -> str:
    """Say which app may have been meant."""
    apps = _apps_in(module)
    close = difflib.get_close_matches(attribute, apps, n=1) or (apps if len(apps) == 1 else [])
    if close:
        return f"; did you mean {module.__name__}:{close[0]}?"
    named = ", ".join(f"{module.__name__}:{each}" for each in apps)
    return f"; there are {named}" if named else ""


def _app_in(module: ModuleType) -> Greenq | None:
    for attribute in _ATTRIBUTES:
        value = getattr(module, attribute, None)
        if isinstance(value, Greenq):
            return value
    apps = [value for value in vars(module).values() if isinstance(value, Greenq)]
    return apps[0] if len(apps) == 1 else None


def _last_lines(exc: BaseException) -> str:
    """Return the user's own frames at the end of a traceback, and the error."""
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    return "".join(
        (*traceback.format_list(own[-4:]), *traceback.format_exception_only(exc))
    ).rstrip()
