"""From a free slot to a stored state: running deliveries, and what the worker knows of them.

Used by the worker, its consumer, its commands and its watchdog.
"""
