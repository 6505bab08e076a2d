"""The sources of settings: mappings, modules, objects, Django's settings and the environment.

Loading returns names and values as found; `greenq.config.settings.Config` checks them later. A name
that looks like a setting but is not read is refused or noted for a warning, never silently ignored.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from greenq.config import celery_names
from greenq.config.settings import SECTIONS, Config, nearest, unknown_reason
from greenq.config.validators import shown
from greenq.errors import ConfigError, Problem
from greenq.utils import suggest

if TYPE_CHECKING:
    from collections.abc import Callable

ENV_PREFIX: Final = "GREENQ_"
_NOT_SETTINGS: Final = frozenset({"GREENQ_APP", "GREENQ_DATA", "GREENQ_RUN"})

# Celery reads these variables from the environment; so does greenq, unless the settings are set
# elsewhere.
CELERY_ENV: Final = {"CELERY_BROKER_URL": "broker_url", "CELERY_RESULT_BACKEND": "result_backend"}
_CELERY_URLS: Final = frozenset({"CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"})

# Kubernetes sets variables in each container for every service. The variables of a service called
# greenq or greenq-web match this pattern.
_KUBERNETES: Final = re.compile(
    r"GREENQ(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)

_OLD: Final = re.compile(r"(CELERY|CELERYD|CELERYBEAT)_", re.IGNORECASE)
_NAMES: Final = Config.names()


def settings_from_object(
    source: object, namespace: str | None = None, notes: list[str] | None = None
) -> dict[str, object]:
    """Return the settings in `source`: a mapping, an object, or a name "module[:attribute]".

    From an object, the public lower-case attributes are read, except modules, functions and
    classes. Attributes that are not settings are taken to be the module's own helpers. If a
    `namespace` is given, such as "CELERY" in Django's settings, the upper-case names that begin
    with it and an underscore are read instead, and the prefix is removed. The values are not
    checked yet.

    Args:
        source: where to look.
        namespace: the prefix, or None.
        notes: receives a warning for each name that is not read.

    Raises:
        ConfigError: the module or attribute does not exist; a name looks like a misspelt setting,
            or is a setting in a different spelling; no name begins with the namespace.
    """
    where = describe(source)
    if isinstance(source, str):
        source = _load(source)
    if isinstance(source, Mapping) and not namespace:
        return {str(name): value for name, value in source.items()}
    found = _public(source)
    reader = _SourceReader([] if notes is None else notes, where)
    if namespace:
        settings = reader.prefixed(found, namespace.upper().rstrip("_") + "_")
    else:
        settings = reader.plain(found)
    if reader.problems:
        raise ConfigError(reader.problems)
    return settings


def _public(source: object) -> dict[str, Callable[[], Any]]:
    """Return the names in `source`, each with a function that reads its value."""
    if isinstance(source, Mapping):
        return {str(name): lambda name=name: source[name] for name in source}  # type: ignore[misc]
    return {
        name: lambda name=name: getattr(source, name)  # type: ignore[misc]
        for name in dir(source)
        if not name.startswith("_")
    }


def describe(source: object) -> str:
    """Return the name of a source of settings, for messages."""
    if isinstance(source, str):
        return source
    return str(getattr(source, "__name__", None) or f"a {type(source).__name__}")


class _SourceReader:
    """Reads the names of one source and collects notes and problems."""

    def __init__(self, notes: list[str], where: str) -> None:
        self.notes = notes
        self.where = where
        self.problems: list[Problem] = []

    def plain(self, found: Mapping[str, Callable[[], Any]]) -> dict[str, object]:
        """Read lower-case names."""
        settings = {}
        for name, read in found.items():
            if name != name.lower():
                self._other_spelling(name, read, found)
                continue
            value = read()
            if not _is_code(value) and self._is_setting(name, name, value):
                settings[name] = value
        return settings

    def prefixed(self, found: Mapping[str, Callable[[], Any]], prefix: str) -> dict[str, object]:
        """Read upper-case names that begin with `prefix`."""
        settings = {}
        for name, read in found.items():
            if name != name.upper():
                continue
            if not name.startswith(prefix):
                self._outside(name, read, found, prefix)
                continue
            setting, value = name.removeprefix(prefix).lower(), read()
            if self._is_setting(name, setting, value, prefix):
                settings[setting] = value
        if not any(name.startswith(prefix) and name == name.upper() for name in found):
            self._no_name(found, prefix)
        return settings

    def _no_name(self, found: Mapping[str, object], prefix: str) -> None:
        heads = {name.partition("_")[0] + "_" for name in found if name == name.upper()}
        near = suggest.nearest(prefix, heads)
        hint = f"; did you mean {near.rstrip('_')!r}?" if near else ""
        reason = f"no upper-case name in {self.where} begins with {prefix}{hint}"
        self.problems.insert(0, Problem("namespace", prefix.rstrip("_"), reason))

    def _is_setting(self, name: str, setting: str, value: object, prefix: str = "") -> bool:
        """Return whether `name` is a setting; if not, record a note or a problem."""
        if setting in _NAMES or setting in celery_names.SETTINGS:
            return True
        modern = celery_names.modern_name(setting, _KNOWN)
        old = modern is not None and (bool(prefix) or _OLD.match(setting) is not None)
        near = nearest(setting)
        if old and modern is not None:
            self._refuse(name, value, f"is an old name; it is now {_spell(modern, prefix)}")
        elif near is not None:
            reason = "greenq has no such setting; did you mean " + _spell(near, prefix)
            self._refuse(name, value, f"{reason}?")
        else:
            self.notes.append(f"{name} in {self.where} is not a setting and is not read")
        return False

    def _other_spelling(
        self, name: str, read: Callable[[], Any], found: Mapping[str, object]
    ) -> None:
        """Refuse a setting in upper case unless it is also given in lower case."""
        if _OLD.match(name):
            setting = celery_names.modern_name(name, _KNOWN)
            if setting is None:
                self.notes.append(f"{name} in {self.where} is not a setting and is not read")
        else:
            setting = name.lower() if name.lower() in _NAMES else None
        if setting is not None and setting not in found:
            reason = f"is not read in this spelling: write {setting}"
            if _OLD.match(name) and name.upper() == name:
                reason += ", or pass namespace='CELERY'"
            self._refuse(name, read(), reason)

    def _outside(
        self, name: str, read: Callable[[], Any], found: Mapping[str, object], prefix: str
    ) -> None:
        """Refuse an old Celery name outside the namespace unless it is also set inside it."""
        if not _OLD.match(name) and not name.startswith("BROKER_"):
            return
        setting = celery_names.modern_name(name, _KNOWN)
        if setting is not None and _spell(setting, prefix) not in found:
            self._refuse(name, read(), f"is not read: write {_spell(setting, prefix)}")

    def _refuse(self, name: str, value: object, reason: str) -> None:
        self.problems.append(Problem(name, shown(name, value), reason))


_KNOWN: Final[Mapping[str, object]] = dict.fromkeys(_NAMES)


def _spell(setting: str, prefix: str) -> str:
    """Return a setting's name in the spelling of sources with this prefix."""
    return prefix + setting.upper() if prefix else setting


def _is_code(value: object) -> bool:
    return inspect.ismodule(value) or inspect.isroutine(value) or inspect.isclass(value)


def _load(path: str) -> object:
    module_name, _, attribute = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        # If the named module exists but imports a missing one, that error is more useful.
        missing = getattr(error, "name", None)
        if missing is not None and not f"{module_name}.".startswith(f"{missing}."):
            raise
        reason = "no such module; is its directory on the Python path?"
        raise ConfigError([Problem("config source", path, reason)]) from error
    for name in attribute.split(".") if attribute else ():
        if not hasattr(found, name):
            raise ConfigError([Problem("config source", path, f"has no attribute {name!r}")])
        found = getattr(found, name)
    return found


def settings_from_env(
    environ: Mapping[str, str], notes: list[str] | None = None
) -> dict[str, object]:
    """Return the settings in `environ`: GREENQ_BROKER_URL is broker_url, and so on.

    Booleans are true, false, 1 or 0; lists are comma-separated or JSON; mappings are JSON; `none`
    means None. CELERY_BROKER_URL and CELERY_RESULT_BACKEND are each used unless greenq's own
    variable is set. The following are not settings: GREENQ_APP (the command line's app),
    GREENQ_DATA (the embedded server's directory), GREENQ_RUN (supervisord's directory), and the
    variables that Kubernetes sets for a service.

    Args:
        environ: the environment.
        notes: receives a warning for each variable that is not read.

    Raises:
        ConfigError: a variable looks like a misspelt setting, or cannot be parsed as its type.
    """
    notes = [] if notes is None else notes
    kinds = {
        ENV_PREFIX + each.name.upper(): (each.name, each.metadata["kind"])
        for section in SECTIONS.values()
        for each in dataclasses.fields(section)
    }
    settings: dict[str, object] = {
        setting: environ[name] for name, setting in CELERY_ENV.items() if environ.get(name)
    }
    problems: list[Problem] = []
    for variable, text in environ.items():
        if variable in kinds:
            name, kind = kinds[variable]
            try:
                settings[name] = kind.parse(text)
            except ValueError as error:
                problems.append(Problem(variable, shown(variable, text), str(error)))
        elif variable.startswith(ENV_PREFIX):
            reason = _not_read(variable, kinds)
            if reason and "; did you mean" in reason:
                problems.append(Problem(variable, shown(variable, text), reason))
            elif reason:
                notes.append(f"{variable} in the environment is not read: {reason}")
        elif variable.startswith("CELERY_") and variable not in CELERY_ENV:
            _look_at_celerys(variable, text, notes, problems)
    if problems:
        raise ConfigError(problems)
    return settings


def _not_read(variable: str, kinds: Mapping[str, object]) -> str | None:
    """Return why a GREENQ_ variable is not a setting; None if it is not meant to be one."""
    if variable in _NOT_SETTINGS or _KUBERNETES.fullmatch(variable):
        return None
    setting = variable.removeprefix(ENV_PREFIX).lower()
    if setting in celery_names.SETTINGS:
        return unknown_reason(setting)
    return "greenq has no such setting" + suggest.suggestion(variable, kinds, cutoff=0.85)


def _look_at_celerys(variable: str, text: str, notes: list[str], problems: list[Problem]) -> None:
    """Report a CELERY_ variable that names a setting; Celery reads only four of these variables."""
    if variable in _CELERY_URLS:
        reason = "greenq uses one server for reading and writing: set GREENQ_BROKER_URL instead"
        problems.append(Problem(variable, shown(variable, text), reason))
        return
    setting = variable.removeprefix("CELERY_").lower()
    modern = setting if setting in _NAMES else celery_names.modern_name(variable, _KNOWN)
    if modern in _NAMES:
        # The variable is not refused, since a program may read it itself, for example in Django's
        # settings.
        own = f"{ENV_PREFIX}{str(modern).upper()}"
        notes.append(f"{variable} in the environment is not read; set {own} instead")
