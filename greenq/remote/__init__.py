"""Asking the workers of a cluster, for programs: `app.control`.

For the app, which makes it, and for the command line.
"""
