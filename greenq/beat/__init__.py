"""Periodic tasks: what is due (`entries`, `policies`: pure), and who sends it (`scheduler`).

The command line and a worker's step use this package. An app loads `periodic` by name.
"""
