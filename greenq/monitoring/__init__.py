"""HTTP endpoints of a worker: its health, the cluster's backlog and its metrics.

A separate thread, alongside the hub and the watchdog thread, serves these endpoints, so they work
while a task blocks the hub, and no client can delay the renewal of the lease.

Only the worker uses this package.
"""
