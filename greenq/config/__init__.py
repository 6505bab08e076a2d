"""Settings: names, defaults, checks, and their sources.

Used by all layers above; imports only errors.
"""
