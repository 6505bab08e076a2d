"""From a call to a message on its queue: options, arguments, route, text and push.

Tasks, the app, and a worker that retries a task use this package. It does not import gevent.
"""
