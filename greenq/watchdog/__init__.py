"""The thread and the process alongside the hub, which renew the lease even if the hub is blocked.

This package is used by the worker, and by the consumer's steps that subscribe or send heartbeats.
"""
