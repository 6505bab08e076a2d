"""Plain gevent without a queue: the same client code with nothing in between."""
