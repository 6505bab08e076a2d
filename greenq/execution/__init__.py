"""The life of a delivery from a free slot to a stored state, and the worker's record of deliveries.

The worker, its consumer, its commands and its watchdog use this package.
"""
