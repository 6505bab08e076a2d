"""One run of a task: the delivery it comes from, the call of its code, how it ends, its signals.

Workers use this package, and so does the app, for tasks that run in the caller's process. The
package knows nothing about workers.
"""
