"""Workers under supervisord: the number of processes, rolling restarts and unresponsive workers.

A worker with ``--processes``, ``greenq deploy restart`` and ``greenq supervisor-listener`` use this
package.
"""
