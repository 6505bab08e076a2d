"""Importing the modules that contain an app's tasks: named by settings, or found in packages."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from greenq.errors import ConfigError, Problem
from greenq.signals import import_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    Packages = Callable[[], Iterable[str] | None]

_log = logging.getLogger(__name__)


class TaskModules:
    """Imports an app's task modules, and knows the packages to search for them."""

    def __init__(self) -> None:
        """Create an object that searches no packages yet."""
        self._places: list[tuple[Packages, str | None]] = []

    def add(self, packages: Packages, related_name: str | None) -> None:
        """Also search the packages that the function `packages` will return."""
        self._places.append((packages, related_name))

    def import_all(self, app: Any, settings: Mapping[str, Any]) -> None:
        """Import the modules that the settings name, and those in the packages.

        Raises:
            ConfigError: a module does not exist. Exceptions raised by a module, or by a receiver of
                import_modules, are passed on.
        """
        set_up_framework(app)
        for _receiver, response in import_modules.send(app):
            if isinstance(response, Exception):
                raise response
        for setting in ("imports", "include"):
            for module in settings[setting]:
                _import_named(module, setting)
        for packages, related_name in self._places:
            discover(packages(), related_name)
        django = django_in_use()
        if django is not None:
            # By now logging is set up, and any setting or task module that patches a driver has
            # been imported.
            django.warn_of_blocking()


def set_up_framework(app: object) -> None:
    """Set up Django for an app if it is in use."""
    django = django_in_use()
    if django is not None:
        django.set_up(app)


def discover(packages: Iterable[str] | None, related_name: str | None) -> None:
    """Import the packages, and the module `related_name` of each one that has it.

    Raises:
        ConfigError: no packages are given, and Django is not in use.
    """
    if packages is None:
        django = django_in_use()
        if django is None:
            reason = (
                "without packages, it searches Django's INSTALLED_APPS: first set "
                "DJANGO_SETTINGS_MODULE and install Django, or name the packages"
            )
            raise ConfigError([Problem("autodiscover_tasks", None, reason)])
        packages = django.packages()
    for entry in packages:
        package = _package(entry)
        if not related_name or not hasattr(sys.modules[package], "__path__"):
            continue
        if find_spec(f"{package}.{related_name}") is not None:
            importlib.import_module(f"{package}.{related_name}")


def django_in_use() -> ModuleType | None:
    """Return greenq's Django module if Django is in use; otherwise None, without loading Django."""
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return None
    if "django" not in sys.modules and find_spec("django") is None:
        _log.warning("DJANGO_SETTINGS_MODULE is ignored, because Django is not installed")
        return None
    return importlib.import_module("greenq.contrib.django")


def _import_named(module: str, source: str) -> None:
    """Import a module named by `source`."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as exc:
        # If the module itself imports something that is missing, pass that error on.
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise
        reason = "no such module; is its directory on the Python path?"
        raise ConfigError([Problem(source, module, reason)]) from exc


def _package(entry: str) -> str:
    """Import the package that an entry names, directly or through an AppConfig; return its name."""
    try:
        importlib.import_module(entry)
    except ModuleNotFoundError as error:
        module, _, attribute = entry.rpartition(".")
        if not module or error.name != entry:
            _import_named(entry, "autodiscover_tasks")
            raise
        package = getattr(getattr(importlib.import_module(module), attribute, None), "name", None)
        if not isinstance(package, str):
            raise
        importlib.import_module(package)
        return package
    return entry
