"""Plain gevent, without a queue: what the same client code does when nothing is between."""
