"""One run of a task: its delivery, the call of its code, its outcome, and its signals.

Workers use this package, and so does the app, for tasks that run in the caller's process. The
package knows nothing about workers.
"""
