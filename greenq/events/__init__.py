"""What happens in a cluster, for programs: `app.events`.

For the app, which makes it, and for the command line.
"""
