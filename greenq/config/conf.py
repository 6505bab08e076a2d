"""`app.conf`: an app's settings, which are read on first use and checked when they are set."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from greenq.config.loaders import CELERY_ENV, settings_from_env
from greenq.config.settings import Config, sift
from greenq.config.validators import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_log = logging.getLogger(__name__)

_SETTINGS = Config.names()


class Settings(Mapping[str, Any]):
    """An app's settings, `app.conf`, as attributes and as a mapping; `update` sets several.

    Unknown names and wrong values are refused immediately, and the nearest valid name is suggested.
    Once the app has connected, its transport keeps the settings it was opened with.

    Attributes:
        built: all checked settings, by section; None while a source still has to be read.
    """

    built: Config | None

    __slots__ = ("_around", "_lazy", "_said", "_sources", "_unread", "_values", "built")

    def __init__(
        self,
        values: Mapping[str, Any],
        around: Sequence[Callable[[], object]] = (),
    ) -> None:
        """Create settings with the defaults, overridden by the environment and then by `values`.

        On first use, the two functions in `around` are called: the first before the settings are
        read, and the second afterwards.
        """
        unread: list[str] = []
        environment = settings_from_env(os.environ, unread)
        object.__setattr__(self, "_values", dict(environment) | dict(values))
        sources = dict.fromkeys(environment, "environment")
        object.__setattr__(self, "_sources", sources | dict.fromkeys(values, "code"))
        object.__setattr__(self, "_lazy", [])
        object.__setattr__(self, "built", None)
        object.__setattr__(self, "_unread", unread)
        object.__setattr__(self, "_said", set())
        object.__setattr__(self, "_around", around)

    def update(self, *mappings: Mapping[str, Any], **values: Any) -> None:
        """Change several settings.

        Raises:
            ConfigError: at least one of them is unknown or wrong, so none is set.
        """
        given: dict[str, Any] = {}
        for mapping in (*mappings, values):
            given.update(mapping)
        self.update_from("code", given)

    def update_from(self, source: str, values: Mapping[str, Any]) -> None:
        """Change several settings, and note where they come from.

        Raises:
            ConfigError: at least one of them is unknown or wrong, so none is set.
        """
        new = dict(self._values) | dict(values)
        built = Config.build(new)
        object.__setattr__(self, "_values", new)
        object.__setattr__(self, "built", None if self._lazy or self._around else built)
        self._sources.update(dict.fromkeys(values, source))

    def source_of(self, name: str) -> str:
        """Return where a setting comes from: default, environment, code or a named source."""
        _ = self.config
        source: str = self._sources.get(name, "default")
        return source

    def read_later(
        self, load: Callable[[list[str]], Mapping[str, Any]], source: str = "code"
    ) -> None:
        """Register `load`, which reads the settings of `source` when they are first needed.

        `load` appends a note to its argument for each name that it does not read.
        """
        self._lazy.append((load, source))
        object.__setattr__(self, "built", None)

    @property
    def config(self) -> Config:
        """All checked settings, by section."""
        if self._around:
            self._read_first()
        while self._lazy:
            notes: list[str] = []
            load, source = self._lazy[0]
            found = load(notes)
            self._values.update(found)
            self._sources.update(dict.fromkeys(found, source))
            self._unread.extend(notes)
            self._lazy.pop(0)
        built = self.built
        if built is None:
            built = Config.build(self._values)
            object.__setattr__(self, "built", built)
        return built

    def _read_first(self) -> None:
        before, after = self._around
        # Signal receivers also read the settings, which must not call these functions again.
        object.__setattr__(self, "_around", ())
        before()
        # Reading the property raises if a setting is wrong.
        _ = self.config
        after()

    def warn(self, *, foreign: bool = True) -> None:
        """Log one warning for each name that is not read or that has no effect.

        If `foreign` is false, Celery settings that greenq does not need are not logged, because
        they concern workers. In programs that only send, the warnings would be clutter.
        """
        config = self.config
        lines = [*self._unread]
        for variable, setting in CELERY_ENV.items():
            given = os.environ.get(variable)
            if given and config.get(setting) != given:
                lines.append(
                    f"{variable} in the environment is not used, since {setting} is set elsewhere"
                )
        if foreign:
            lines += [f"the setting {note}" for note in sift(self._values).notes]
        for line in lines:
            if line not in self._said:
                self._said.add(line)
                _log.warning("%s", line)

    def __getattr__(self, name: str) -> Any:
        """Read one setting; an unknown name raises an AttributeError with a suggestion."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set one setting."""
        self.update({name: value})

    def __getitem__(self, name: str) -> Any:
        """Read one setting; an unknown name raises a KeyError with a suggestion."""
        config = self.config
        # Code that has set a setting that only Celery has can also read it.
        if name not in _SETTINGS and name in self._values:
            return self._values[name]
        return config.get(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Set one setting."""
        self.update({name: value})

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all settings."""
        return iter(sorted(_SETTINGS))

    def __len__(self) -> int:
        """Count the settings."""
        return len(_SETTINGS)

    def __repr__(self) -> str:
        """Show the values that were set, without passwords."""
        return f"<Settings {shown('conf', self._values)}>"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        """Compare by content."""
        return self is other or (isinstance(other, Mapping) and dict(self) == dict(other))
