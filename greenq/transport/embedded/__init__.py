"""The embedded Valkey: `server` starts it; `keeper` is the process that stops it.

`transport.transport`, the demo and the tests use this package.
"""
