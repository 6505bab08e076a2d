"""Workers under supervisord: the number of processes, rolling restarts, and restarts of
unresponsive processes.

Used by a worker with ``--processes``, ``greenq deploy restart`` and ``greenq supervisor-listener``.
"""
