"""The thread and the process alongside the hub, which renew the lease even if it is blocked.

The worker, and the consumer's steps that subscribe or send heartbeats, use this package.
"""
