"""The tasks of an app: how they are defined and shared, and what the settings change about them.

Used by the app alone.
"""
