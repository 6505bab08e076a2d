"""What every layer may use, and what knows nothing of tasks: the log, pauses, addresses and so on.

The name of `greenq.utils.log` comes from Celery. The package uses only the errors and, of the wire
formats, the module for text.
"""
