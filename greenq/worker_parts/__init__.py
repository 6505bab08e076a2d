"""What a worker consists of: its options, its parts, and the code that builds them.

The worker, its commands and monitoring, and the command line use this package.
"""

from __future__ import annotations

from greenq.worker_parts.options import WorkerOptions
from greenq.worker_parts.parts import Parts

__all__ = ["Parts", "WorkerOptions"]
