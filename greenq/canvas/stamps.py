"""Stamps: named values on every task of a workflow, for finding, revoking and counting tasks.

Stamps are options of a signature; the option ``stamped_headers`` lists their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greenq.canvas import plan

STAMPED = "stamped_headers"


class StampingVisitor:
    """Chooses stamps for each part of a workflow; override the methods that you need.

    Each method returns stamps, by name, for the part it receives; stamps for a group, a chain
    or a chord's header also go to all parts inside it. If the returned values include
    ``stamped_headers``, only the names in that list are stamps.
    """

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        """Return stamps for one task."""
        raise NotImplementedError

    def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any]:
        """Return stamps for a group and its members."""
        return {}

    def on_group_end(self, group: Any, **headers: Any) -> None:
        """Do nothing; this is called after a group's members have been stamped."""

    def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any]:
        """Return stamps for a chain and its steps."""
        return {}

    def on_chain_end(self, chain: Any, **headers: Any) -> None:
        """Do nothing; this is called after a chain's steps have been stamped."""

    def on_chord_header_start(self, sig: Any, **header: Any) -> dict[str, Any]:
        """Return stamps for a chord's header and its members: the same as for a group."""
        return self.on_group_start(sig.tasks, **header)

    def on_chord_header_end(self, sig: Any, **header: Any) -> None:
        """Do the same as for a group; this is called after a chord's header has been stamped."""
        self.on_group_end(sig.tasks, **header)

    def on_chord_body(self, sig: Any, **header: Any) -> dict[str, Any]:
        """Return stamps for a chord's body."""
        return {}

    def on_callback(self, callback: Any, **header: Any) -> dict[str, Any]:
        """Return stamps for an ordinary callback."""
        return {}

    def on_errback(self, errback: Any, **header: Any) -> dict[str, Any]:
        """Return stamps for an errback."""
        return {}


def stamp_signature(
    sig: dict[str, Any], visitor: StampingVisitor | None, headers: Mapping[str, Any], append: bool
) -> None:
    """Stamp a signature and everything that belongs to it."""
    _Stamper(visitor, append).stamp(sig, headers)


class _Stamper:
    """Goes through a workflow and stamps its parts."""

    def __init__(self, visitor: StampingVisitor | None, append: bool) -> None:
        self._visitor = visitor
        self._append = append

    def stamp(self, sig: Any, headers: Mapping[str, Any]) -> None:
        """Stamp a signature of any kind with `headers` and the stamps that the visitor adds."""
        what = plan.kind(sig)
        if what == "chain":
            self._stamp_chain(sig, headers)
        elif what == "group":
            self._stamp_group(sig, headers)
        elif what == "chord":
            self._stamp_chord(sig, headers)
        else:
            self._stamp_links(sig, headers)
            self._put(sig, self._with(headers, "on_signature", sig))

    def _stamp_chain(self, sig: Any, headers: Mapping[str, Any]) -> None:
        headers = self._with(headers, "on_chain_start", sig)
        self._stamp_links(sig, headers)
        for step in sig.tasks:
            self.stamp(step, headers)
        self._end("on_chain_end", sig, headers)

    def _stamp_group(self, sig: Any, headers: Mapping[str, Any]) -> None:
        headers = self._with(headers, "on_group_start", sig)
        self._stamp_members(sig, headers)
        self._end("on_group_end", sig, headers)

    def _stamp_members(self, group: Any, headers: Mapping[str, Any]) -> None:
        self._stamp_links(group, headers)
        for member in group.tasks:
            self.stamp(member, headers)

    def _stamp_chord(self, sig: Any, headers: Mapping[str, Any]) -> None:
        self._stamp_links(sig, headers)
        of_header = self._with(headers, "on_chord_header_start", sig)
        self._stamp_members(sig.tasks, of_header)
        self._end("on_chord_header_end", sig, of_header)
        if sig.body is not None:
            self.stamp(sig.body, self._with(headers, "on_chord_body", sig))

    def _stamp_links(self, sig: Any, headers: Mapping[str, Any]) -> None:
        for option, hook in (("link", "on_callback"), ("link_error", "on_errback")):
            for linked in plan.listed(sig.options.get(option)):
                self.stamp(linked, self._with(headers, hook, linked))

    def _with(self, headers: Mapping[str, Any], hook: str, sig: Any) -> Mapping[str, Any]:
        """Return `headers` combined with the stamps that the visitor adds for a part."""
        if self._visitor is None:
            return headers
        added = dict(getattr(self._visitor, hook)(sig, **headers) or {})
        names = added.pop(STAMPED, None)
        chosen = added if names is None else {name: added[name] for name in names if name in added}
        return {**headers, **{name: self._both(headers, name, chosen[name]) for name in chosen}}

    def _end(self, hook: str, sig: Any, headers: Mapping[str, Any]) -> None:
        if self._visitor is not None:
            getattr(self._visitor, hook)(sig, **headers)

    def _put(self, sig: Any, headers: Mapping[str, Any]) -> None:
        if not headers:
            return
        options = sig.options
        own = {name: options[name] for name in options.get(STAMPED) or () if name in options}
        for name, value in headers.items():
            options[name] = self._both(own, name, value)
        options[STAMPED] = list({**own, **headers})

    def _both(self, before: Mapping[str, Any], name: str, value: Any) -> Any:
        """Return a stamp's new value, in a list with the old one if values are appended."""
        if not self._append or name not in before or before[name] == value:
            return value
        return [*plan.listed(before[name]), *plan.listed(value)]
