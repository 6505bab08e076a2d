"""What a worker is doing at the moment: stacks, and the time for which tasks have held the hub.

For the pool, the commands and the worker.
"""
