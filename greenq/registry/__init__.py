"""The tasks of an app: how they are defined and shared, and what the settings change about them.

Only the app uses this package.
"""
