"""A call becomes a message on its queue: options, arguments, route, text, push.

For tasks, the app, and a worker that retries one. Loads no gevent.
"""
