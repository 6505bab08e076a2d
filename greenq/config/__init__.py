"""Settings: names, defaults, checks, and their sources.

All layers above use this package, which imports only `greenq.errors` and `greenq.utils`.
"""
