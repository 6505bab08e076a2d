"""A cluster's events for use by programs: `app.events`.

Used by the app, which creates it, and by the command line.
"""
