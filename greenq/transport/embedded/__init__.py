"""The embedded Valkey: `server` starts it; `keeper` is the process that stops it.

Used by `transport.transport`, the demo and tests.
"""
