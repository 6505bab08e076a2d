"""What every layer may use, and what knows of no task: log, pauses, near names, addresses, version.

`greenq.utils.log` has its name from Celery. Uses only errors and text of the wire formats.
"""
