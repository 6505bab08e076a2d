"""Where settings are read from: a mapping, a module, an object, Django's settings, the environment.

What comes back is names and values as they were found; `greenq.config.Config` checks them.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Final

from greenq.config import SECTIONS
from greenq.errors import ConfigError, Problem
from greenq.kinds import shown

ENV_PREFIX: Final = "GREENQ_"
_NOT_SETTINGS: Final = frozenset({"GREENQ_APP", "GREENQ_DATA", "GREENQ_RUN"})


def settings_from_object(source: object, namespace: str | None = None) -> dict[str, object]:
    """Return the settings in `source`: a mapping, any object, or one named "module[:attribute]".

    Of an object its public lower-case attributes count, except modules, functions and classes.
    With a `namespace`, such as "CELERY" in Django's settings, the upper-case names that begin with
    it and an underscore count, and lose that prefix. The values are not checked yet.

    Raises: ConfigError: no such module or attribute.
    """
    if isinstance(source, str):
        source = _load(source)
    if namespace:
        return _prefixed(source, namespace.upper().rstrip("_") + "_")
    if isinstance(source, Mapping):
        return {str(name): value for name, value in source.items()}
    public = (name for name in dir(source) if not name.startswith("_") and name == name.lower())
    found = ((name, getattr(source, name)) for name in public)
    return {name: value for name, value in found if not _is_code(value)}


def _prefixed(source: object, prefix: str) -> dict[str, object]:
    if isinstance(source, Mapping):
        names, read = list(source), source.__getitem__
    else:
        names, read = dir(source), lambda name: getattr(source, name)
    return {
        name.removeprefix(prefix).lower(): read(name)
        for name in names
        if name.startswith(prefix) and name == name.upper()
    }


def _is_code(value: object) -> bool:
    return inspect.ismodule(value) or inspect.isroutine(value) or inspect.isclass(value)


def _load(path: str) -> object:
    module_name, _, attribute = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        # Only what the path itself names: a module missing inside it is that module's own error.
        missing = getattr(error, "name", None)
        if missing is not None and not f"{module_name}.".startswith(f"{missing}."):
            raise
        reason = "no such module; is its folder on the Python path?"
        raise ConfigError([Problem("config source", path, reason)]) from error
    for name in attribute.split(".") if attribute else ():
        if not hasattr(found, name):
            raise ConfigError([Problem("config source", path, f"has no attribute {name!r}")])
        found = getattr(found, name)
    return found


def settings_from_env(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the settings in `environ`: GREENQ_BROKER_URL is broker_url, and so on.

    Truth values are true, false, 1 or 0; lists are separated by commas or are JSON; mappings are
    JSON; None is none. No settings are GREENQ_APP (the command line's app), GREENQ_DATA (the
    embedded server's folder) and GREENQ_RUN (supervisord's folder).

    Raises: ConfigError: a variable names no setting, or cannot be read as its type.
    """
    kinds = {
        ENV_PREFIX + each.name.upper(): (each.name, each.metadata["kind"])
        for section in SECTIONS.values()
        for each in dataclasses.fields(section)
    }
    settings: dict[str, object] = {}
    problems: list[Problem] = []
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in _NOT_SETTINGS:
            continue
        if variable not in kinds:
            close = difflib.get_close_matches(variable, kinds, n=1, cutoff=0.75)
            hint = f"; did you mean {close[0]}?" if close else ""
            reason = "greenq has no such setting" + hint
            problems.append(Problem(variable, shown(variable, text), reason))
            continue
        name, kind = kinds[variable]
        try:
            settings[name] = kind.parse(text)
        except ValueError as error:
            problems.append(Problem(variable, shown(variable, text), str(error)))
    if problems:
        raise ConfigError(problems)
    return settings
