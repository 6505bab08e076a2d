"""Redis and Valkey: the only part of greenq that talks to a server.

Used by senders and workers alike. The modules that only a worker uses (fetch, leases, recovery,
outbox) need gevent, so only workers import them.
"""
