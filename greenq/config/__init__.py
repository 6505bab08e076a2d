"""Settings: names, defaults, checks, and where they are read from.

For everybody above; imports only errors.
"""
