"""The thread and the process alongside the hub, which renew the lease even if the hub is blocked.

The worker uses this package, as do the consumer's steps that subscribe or send heartbeats.
"""
