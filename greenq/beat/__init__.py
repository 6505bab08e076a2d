"""Periodic tasks: finding due times (`entries`, `policies`: no I/O), and sending (`scheduler`).

The command line and a worker's step use this package. An app loads `periodic` by name.
"""
