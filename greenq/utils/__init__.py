"""Helpers for every layer, independent of tasks: for logging, pauses, addresses and so on.

The name of `greenq.utils.log` comes from Celery. Of the rest of greenq, the package uses only
`greenq.errors` and `greenq.protocol.text`.
"""
