"""Keeping one worker fit: the size of its pool, its age and memory, the age of its source.

Used by the worker's parts and the autoscaler; the modules do not know one another.
"""
