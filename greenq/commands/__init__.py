"""The remote control commands that a worker carries out.

Importing this package, or any module of it, registers all commands. An app adds its own commands
with `control_command` and `inspect_command`. Celery's commands have the same names, arguments and
reply formats as in Celery. The worker uses this package; apps use the two decorators.
"""

from greenq.commands import control, diagnostics, inspect, queues, registry

__all__ = ["control", "diagnostics", "inspect", "queues", "registry"]
