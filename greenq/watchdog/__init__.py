"""The thread beside the hub, and the process beside it: they keep the lease, whatever the hub does.

For the worker, and for the consumer's steps that subscribe or beat.
"""
