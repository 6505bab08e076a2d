"""Keeping one worker fit: the size of its pool, its age and memory, the age of its source.

The worker's parts and the autoscaler use this package; its modules do not know one another.
"""
