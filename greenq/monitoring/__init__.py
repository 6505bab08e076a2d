"""What others ask of a worker over HTTP: its health, the cluster's backlog, its metrics.

A thread of its own answers, beside the hub and the watchdog thread: it answers while a task blocks
the hub, and no client can hold up the renewal of the lease.
"""
