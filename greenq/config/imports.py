"""Imports the objects that settings name by their full paths, such as ``proj.routing.route``."""

from __future__ import annotations

import importlib
from typing import Any


def import_object(path: str) -> Any:
    """Import ``package.module.name`` or ``package.module:name``.

    Raises:
        ImportError: there is no such module, or it cannot be imported.
        AttributeError: the module has no such name.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    return getattr(importlib.import_module(module), name)
