"""Steps: the parts of a worker, including those that an app adds to it.

An app's steps derive from the classes exported here, as in Celery. `blueprint` orders and starts
all steps; its own base classes are for greenq's parts. Every part of a worker uses this package.
"""

from __future__ import annotations

from greenq.bootsteps.steps import Option, StartStopStep, Step

__all__ = ["Option", "StartStopStep", "Step"]
