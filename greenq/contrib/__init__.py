"""Integrations with frameworks; each is imported only if its framework is in use.

Used by applications. The app loads `django` by its name; nothing else of greenq imports any.
"""
