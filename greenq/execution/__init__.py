"""Running deliveries, from a free slot to a stored state, and the worker's record of them.

The worker, its consumer, its commands and its watchdog use this package.
"""
