"""From a call to a message on its queue: options, arguments, route, text, push.

Used by tasks, by the app, and by a worker that retries a task. Imports no gevent.
"""
