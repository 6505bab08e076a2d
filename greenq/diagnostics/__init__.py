"""What a worker is doing at the moment: stacks, and how long tasks have held the hub.

Used by the pool, the commands and the worker.
"""
