"""The thread and the process beside the hub, which renew the lease even if the hub is blocked.

Used by the worker, and by the steps of the consumer that subscribe or send heartbeats.
"""
