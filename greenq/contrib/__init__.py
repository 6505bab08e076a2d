"""Integrations with frameworks; each is imported only if its framework is in use.

Applications import these modules. `greenq.app` imports `django` by its name; nothing else in greenq
imports any of them.
"""
