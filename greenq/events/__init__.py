"""Events in a cluster, for programs: `app.events`.

Used by the app, which creates it, and by the command line.
"""
