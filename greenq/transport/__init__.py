"""Access to Redis and Valkey: the only part of greenq that talks to a server.

Both senders and workers use this package. The modules that only a worker uses (fetch, leases,
recovery, outbox) need gevent, so only workers import them.
"""
