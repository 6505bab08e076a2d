"""Steps: the parts that workers are made of, and those that an app adds to them.

Here are the classes that an app's own steps derive from, as in Celery. `blueprint`, which orders
and starts all steps, is for greenq's own parts.
"""

from __future__ import annotations

from greenq.bootsteps.steps import Option, StartStopStep, Step

__all__ = ["Option", "StartStopStep", "Step"]
