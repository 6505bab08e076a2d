"""Integrations with frameworks; each is imported only if its framework is in use.

Applications import these modules. Within greenq, only `greenq.registry.discovery` imports one of
them, `django`, by its name.
"""
