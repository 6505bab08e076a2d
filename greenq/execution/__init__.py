"""From a free slot to a stored state: running one delivery, and what the worker knows of all.

For the worker, its consumer, its commands and its watchdog.
"""
