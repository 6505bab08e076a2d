"""``greenq graph``: the parts of the worker and of its consumer, in starting order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenq.app import Greenq
from greenq.cli import show
from greenq.cli.load import find_app
from greenq.cli.worker_options import custom_defaults
from greenq.worker import Worker
from greenq.worker_parts.options import WorkerOptions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from greenq.bootsteps.blueprint import GraphNode

    Graphs = Mapping[str, Sequence[GraphNode]]

# Nothing connects to this address, since the worker is created but not started. Without an address,
# an embedded server would be started.
_NOWHERE = {"broker_url": "redis://nowhere.invalid:6379/0", "result_backend": "disabled://"}


def run(args: argparse.Namespace) -> int:
    """Print the blueprints as text, as JSON, or as a graph for ``dot``."""
    app = find_app(args.app) if args.app else Greenq("graph", set_as_current=False)
    app.conf.update(_NOWHERE)
    options = custom_defaults(app.user_options["worker"])
    graphs = _graphs(Worker(app, WorkerOptions(step_options=options)))
    if args.which:
        graphs = {args.which: graphs[args.which]}
    if args.json:
        show.write_json(
            {name: [node._asdict() for node in nodes] for name, nodes in graphs.items()}
        )
        return 0
    for line in dot(graphs) if args.dot else text(graphs):
        show.write(line)
    return 0


def _graphs(worker: Worker) -> dict[str, Sequence[GraphNode]]:
    blueprints = (worker.blueprint, worker.consumer.blueprint)
    return {blueprint.name: blueprint.graph() for blueprint in blueprints}


def text(graphs: Graphs) -> Iterator[str]:
    """Format each blueprint as a table."""
    for number, (name, nodes) in enumerate(graphs.items()):
        if number:
            yield ""
        rows = [
            (f"{place}.", _marked(node), ", ".join(node.requires) or "-", node.description)
            for place, node in enumerate(nodes, 1)
        ]
        if name == "consumer":
            place = f"{len(nodes) + 1}."
            rows.append((place, "event loop", "all of these", "Takes tasks until told to stop."))
        headings = ("", name.upper(), "REQUIRES", "")
        yield from show.table(headings, rows, color=show.bold_wanted(), width=show.width())


def dot(graphs: Graphs) -> Iterator[str]:
    """Format the blueprints for Graphviz; an arrow leads from a step to a step that requires it."""
    yield "digraph greenq {"
    yield "  rankdir=LR; node [shape=box];"
    for name, nodes in graphs.items():
        yield f"  subgraph {show.dot_quoted(f'cluster_{name}')} {{"
        yield f"    label={show.dot_quoted(name)};"
        for node in nodes:
            style = "" if node.included else ", style=dashed"
            yield f"    {_id(name, node.name)} [label={show.dot_quoted(node.name)}{style}];"
        for node in nodes:
            for needed in node.requires:
                yield f"    {_id(name, needed)} -> {_id(name, node.name)};"
        yield "  }"
    yield "}"


def _marked(node: GraphNode) -> str:
    return node.name if node.included else f"{node.name} (off)"


def _id(blueprint: str, step: str) -> str:
    return show.dot_quoted(f"{blueprint}.{step}")
