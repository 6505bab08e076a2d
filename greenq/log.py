import logging, sys
from contextvars import ContextVar
task_log_context = ContextVar("greenq_task_log", default=None)
def setup(level, *, logfile=None, color=None, stream=sys.stderr):
    logging.basicConfig(level=level, stream=stream, format="[%(asctime)s: %(levelname)s/%(processName)s] %(message)s")
