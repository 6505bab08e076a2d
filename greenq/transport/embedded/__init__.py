"""The embedded Valkey: `server` starts it; `keeper` is the process that ends it.

For `transport.transport`, the demo and tests.
"""
