"""The thread and the process beside the hub: they keep the lease, whatever the hub does.

Used by the worker, and by the steps of the consumer that subscribe or send heartbeats.
"""
