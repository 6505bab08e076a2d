"""What a worker is doing at the moment: stacks, and how long tasks have held the hub.

The pool, the commands and the worker use this package.
"""
