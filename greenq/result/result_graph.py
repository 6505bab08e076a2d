"""A graph of tasks and the tasks that they sent."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any, TextIO

from greenq.protocol.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator


class ResultGraph(dict[Any, list[Any]]):
    """A mapping from each handle to the handles of the tasks that it has sent."""

    def add_arc(self, node: Any) -> None:
        """Add a handle if it is not yet present."""
        self.setdefault(node, [])

    def add_edge(self, parent: Any, child: Any) -> None:
        """Record that `parent` sent `child`."""
        self.add_arc(child)
        self.setdefault(parent, []).append(child)

    def edges(self) -> Iterator[tuple[Any, Any]]:
        """Yield each pair of parent and child."""
        return ((parent, child) for parent, children in self.items() for child in children)

    def topsort(self) -> list[Any]:
        """Return the handles, each one after all of its children."""
        return list(TopologicalSorter(self).static_order())

    def to_dot(self, file: TextIO) -> None:
        """Write the graph in the language of Graphviz's ``dot``."""
        file.write("digraph results {\n")
        for node in self:
            file.write(f"    {_quoted(node)};\n")
        for parent, child in self.edges():
            file.write(f"    {_quoted(parent)} -> {_quoted(child)};\n")
        file.write("}\n")


def _quoted(node: Any) -> str:
    escaped = printable(str(node)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
