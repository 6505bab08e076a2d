"""One run of a task: the delivery it stems from, the call of its code, how it ends, its signals.

Used by workers and, for tasks that run in the caller's process, by the app. Knows no worker.
"""
