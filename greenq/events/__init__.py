"""A cluster's events for use by programs: `app.events`.

The app, which creates `events`, and the command line use this package.
"""
