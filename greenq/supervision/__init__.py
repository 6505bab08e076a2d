"""Workers under supervisord: how many processes run, restarts one by one, restarts of mute ones.

Used by a worker with ``--processes``, ``greenq deploy restart`` and ``greenq supervisor-listener``.
"""
