"""Integrations with frameworks; each is imported only if its framework is in use.

Applications use these modules. The app loads `django` by its name; nothing else in greenq imports
any of them.
"""
