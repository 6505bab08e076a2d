"""Remote control of a cluster's workers from programs: `app.control`.

The app, which creates `control`, and the command line use this package.
"""
