"""The embedded Valkey: `server` starts it, and `keeper` is the process that stops it.

This package is used by `transport.transport`, the demo and the tests.
"""
