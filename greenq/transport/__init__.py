"""Redis and Valkey: the only part of greenq that talks to a server.

For senders and workers alike. What only a worker uses (fetch, leases, recovery, outbox) is
loaded by workers alone, since it needs gevent.
"""
