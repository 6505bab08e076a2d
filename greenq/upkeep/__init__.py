"""Keeping one worker fit: the size of its pool, its age and memory, and changes to its source.

The worker's parts and the autoscaler use this package, whose modules do not import one another.
"""
