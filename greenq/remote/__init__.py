"""Remote control of a cluster's workers from programs: `app.control`.

Used by the app, which creates it, and by the command line.
"""
