"""What every layer may use and knows of no task: log, pauses, near names, addresses, version.

`greenq.utils.log` has its name from Celery. The package uses only the errors and the wire formats'
module for text.
"""
