"""Periodic tasks: what is due (`entries`, `policies`: pure), and who sends it (`scheduler`).

Used by the command line and by a worker's step. An app loads `periodic` by name.
"""
