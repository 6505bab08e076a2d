"""Workers under supervisord: number of processes, rolling restarts, unresponsive workers.

Used by a worker with ``--processes``, ``greenq deploy restart`` and ``greenq supervisor-listener``.
"""
