"""Remote control of a cluster's workers, for programs: `app.control`.

Used by the app, which creates it, and by the command line.
"""
